"""An output is more than a tensor, and what is trained must matter to it."""

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import fusion_tinting as ft

from .cases import Case
from .small import SAMPLES, TASKS, Plain, experts_of, heads_of, look, make, plain_data, tint, vectors

OUTPUT = ("output", "logits", "cats", "return")
GRADIENT = ("gradient", "grad")


class Changed(Plain):
    """An encoder that makes something else of its features."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = [change]  # no part of the model

    def forward(self, x: Tensor) -> Any:
        return self.change[0](super().forward(x))


class Head(nn.Module):
    """A linear head that takes and gives something else."""

    def __init__(self, take: Callable[[Any], Tensor], give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.functions = take, give

    def forward(self, features: Any) -> Any:
        take, give = self.functions
        return give(self.layer(take(features)))


def same(value: Any) -> Any:
    return value


Output = namedtuple("Output", "logits hidden")


def hub_output(x: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=x[:, None], pooler_output=x)


def hub_logits(x: Tensor) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=x)


def of(
    change: Callable[[Tensor], Any] = same,
    take: Callable[[Any], Tensor] = same,
    give: Callable[[Tensor], Any] = same,
    **options: Any,
) -> Callable[[], Any]:
    """Return what tints an encoder and heads changed so."""

    def act() -> Any:
        torch.manual_seed(0)
        pretrained = Changed(change)
        heads: dict[str, nn.Module] = {}
        for task, linear in heads_of().items():
            heads[task] = Head(take, give)
            heads[task].layer.load_state_dict(linear.state_dict())
        models = {"pretrained": pretrained, "experts": experts_of(pretrained), "heads": heads}
        return look(tint(models, plain_data(), **options))

    return act


@cache
def plain(update: str = "sequential", layer: str = "head") -> dict[str, Any]:
    """Return the result without any change."""
    return of(update=update, layer=layer)()


def forms() -> list[Case]:
    """Encoders and heads that wrap their tensors."""
    encoder_forms: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
        "a ModelOutput": (hub_output, lambda o: o.pooler_output),
        "a ModelOutput's positions": (hub_output, lambda o: o.last_hidden_state[:, 0]),
        "a tuple": (lambda x: (x, None), lambda o: o[0]),
        "a list": (lambda x: [x, x], lambda o: o[1]),
        "a dict": (lambda x: {"features": x}, lambda o: o["features"]),
        "a named tuple": (lambda x: Output(x, 3), lambda o: o.logits),
        "nested": (lambda x: {"a": (x, {"b": x})}, lambda o: o["a"][1]["b"]),
        "a tensor and one that has no samples": (lambda x: (x, x.mean(0)), lambda o: o[0]),
        "positions": (lambda x: x[:, None].expand(-1, 3, -1), lambda o: o[:, 0]),
    }
    cases = []
    for update in ("sequential", "joint"):
        for layer in ("head", "block:1"):
            for name, (change, take) in encoder_forms.items():
                options = {"update": update, "layer": layer}
                cases.append(
                    Case(
                        f"outputs: encoder gives {name}, {update}, {layer}",
                        of(change, take, **options),
                        lambda u=update, la=layer: plain(u, la),
                        OUTPUT,
                    )
                )
    return cases


def head_forms() -> list[Case]:
    """Heads whose logits are within something."""
    forms: dict[str, Callable[[Tensor], Any]] = {
        "a ModelOutput": hub_logits,
        "a dict of logits": lambda x: {"logits": x},
        "a tuple": lambda x: (x, None),
        "a named tuple": lambda x: Output(x, None),
        "double precision": lambda x: x.double(),
        "half precision": lambda x: x,
        "a view": lambda x: x.T.contiguous().T,
    }
    return [
        Case(
            f"outputs: head gives {name}, {update}",
            of(give=give, update=update),
            lambda u=update: plain(u),
            OUTPUT,
        )
        for name, give in forms.items()
        for update in ("sequential", "joint")
    ]


NONE: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "nothing": (lambda x: None, OUTPUT),
    "a text": (lambda x: "cat", OUTPUT),
    "a list of numbers": (lambda x: x.tolist(), OUTPUT),
    "an array": (lambda x: x.detach().numpy(), OUTPUT),
    "the arg-max": (lambda x: x.argmax(1), OUTPUT),
    "whole numbers": (lambda x: x.round().long(), OUTPUT),
    "truths": (lambda x: x > 0, OUTPUT),
    "complex numbers": (lambda x: torch.complex(x, x), OUTPUT),
    "one number for the batch": (lambda x: x.mean(), OUTPUT),
    "the mean of the batch": (lambda x: x.mean(0), OUTPUT),
    "the mean of the batch as a row": (lambda x: x.mean(0, keepdim=True), OUTPUT),
    "one row too few": (lambda x: x[:-1], OUTPUT),
    "two rows a sample": (lambda x: x.repeat(2, 1), OUTPUT),
    "the transposed": (lambda x: x.T, OUTPUT),
    "a dict without logits": (lambda x: {"scores": x}, OUTPUT),
    "a dict of two": (lambda x: {"a": x, "b": x}, OUTPUT),
    "not a number": (lambda x: x * float("nan"), ("finite", "nan", "NaN", *OUTPUT)),
    "infinity": (lambda x: x / 0, ("finite", "inf", "nan", *OUTPUT)),
    "minus infinity for a class": (lambda x: x + torch.tensor([0, 0, 0, -torch.inf]), ("finite", "inf")),
    "no class": (lambda x: x[:, :0], OUTPUT),
    "detached logits": (lambda x: x.detach(), (*GRADIENT, *OUTPUT)),
    "logits of no gradient": (lambda x: torch.tensor(x.tolist()), (*GRADIENT, *OUTPUT)),
    "ones": (lambda x: torch.ones_like(x), (*GRADIENT, *OUTPUT)),
}

# What an encoder may do so that λ or the tint never matters.


def without_gradient(x: Tensor) -> Tensor:
    return x.detach()


class Unmoved(Plain):
    """Runs without gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Inferring(Plain):
    """Runs in inference mode."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)


class Listed(Plain):
    """Calls its blocks through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.listed:
            x = x + block(x).tanh()
        return self.norm(x)


class Dictionary(Plain):
    """Keeps them in a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name = {"one": self.blocks[0], "two": self.blocks[1]}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.by_name.values():
            x = x + block(x).tanh()
        return self.norm(x)


class Bound(Plain):
    """Keeps a bound method of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [block.forward for block in self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for step in self.steps:
            x = x + step(x).tanh()
        return self.norm(x)


class Skipped(Plain):
    """Never calls its last block."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.norm(x + self.blocks[0](x).tanh())


class Reading(Plain):
    """Takes weights of the last block out by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.blocks[1].weight]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.blocks[0](x).tanh()
        return self.norm(x + torch.tanh(x @ self.weights[0].T))


class Twice(Plain):
    """Has a block under two names, and calls both."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.blocks[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.again(super().forward(x))


class Alias(Plain):
    """Has a block under two names, and calls it by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.blocks[1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.blocks[0](x).tanh()
        return self.norm(x + self.again(x).tanh())


class Freezing(Plain):
    """Freezes itself as it runs."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x).tanh()
        return self.norm(x)


class Constant(Plain):
    """Gives the same whatever its weights are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), 6) * x.sum(1, keepdim=True)


class Counting(Plain):
    """Counts its calls, and gives the count a place in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Drawing(Plain):
    """Adds noise, in `eval` too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(len(x), 6)


class Batchwise(Plain):
    """Normalizes by the batch, in `eval` too: an output depends on the others."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x - x.mean(0, keepdim=True)


def kind(model: type[nn.Module], **options: Any) -> Callable[[], Any]:
    return lambda: look(tint(make(model), plain_data(), **options))


def dense(*order: int) -> Callable[[], Any]:
    """Heads of 4 classes at 3 positions, their axes in this order."""

    def act() -> Any:
        models = make()
        torch.manual_seed(4)
        models["heads"] = {
            task: nn.Sequential(nn.Linear(6, 12), nn.Unflatten(1, (4, 3)), Permuted(order))
            for task in TASKS
        }
        return look(tint(models, plain_data(), sampler="all"))

    return act


class Permuted(nn.Module):
    """Exchanges axes."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, *self.order)


def ignoring(output: Tensor, expert: Tensor) -> Tensor:
    return torch.zeros(len(output))


def named(loss: Callable[[Tensor, Tensor], Any]) -> Callable[[], Any]:
    return lambda: look(tint(make(), plain_data(), objective=ft.Objective("mine", loss)))


def sampled(sampler: Callable[[Tensor, Tensor], Any]) -> Callable[[], Any]:
    return lambda: look(tint(make(), plain_data(), sampler=sampler))


def settled(**options: Any) -> Callable[[], Any]:
    return lambda: look(tint(make(), plain_data(), **options))


MATTER = ("block", "layer", "tint", "gradient", "twice", "two names", "again", "shared")
CASES = [
    *forms(),
    *head_forms(),
    *(Case(f"outputs: head gives {name}", of(give=give), None, words) for name, (give, words) in NONE.items()),
    *(Case(f"outputs: head gives {name}, joint", of(give=give, update="joint"), None, words)
      for name, (give, words) in NONE.items() if name in ("nothing", "the arg-max", "the mean of the batch", "one row too few")),
    Case("outputs: encoder under no_grad", kind(Unmoved), None, GRADIENT),
    Case("outputs: encoder under no_grad, a tinted block", kind(Unmoved, layer="block:1"), None, GRADIENT),
    Case("outputs: encoder under no_grad, λ frozen", kind(Unmoved, lr_coefficients=0), kind(Plain, lr_coefficients=0), GRADIENT),
    Case("outputs: encoder in inference mode", kind(Inferring), None, (*GRADIENT, "inference")),
    Case("outputs: encoder that detaches", of(without_gradient), None, GRADIENT),
    Case("outputs: encoder of arrays", of(lambda x: torch.from_numpy(x.detach().numpy())), None, GRADIENT),
    Case("outputs: encoder that freezes a part", kind(Freezing, layer="block:0"), None, MATTER),
    Case("outputs: encoder without a use of its weights", kind(Constant), None, GRADIENT),
    Case("outputs: blocks in a plain list, one tinted", kind(Listed, layer="block:1"), kind(Plain, layer="block:1"), MATTER),
    Case("outputs: blocks in a plain list, head tinted", kind(Listed), kind(Plain), ("listed", "list")),
    Case("outputs: blocks in a plain dict, one tinted", kind(Dictionary, layer="block:0"), kind(Plain, layer="block:0"), MATTER),
    Case("outputs: bound methods of blocks, one tinted", kind(Bound, layer="block:1"), kind(Plain, layer="block:1"), MATTER),
    Case("outputs: bound methods of blocks, head tinted", kind(Bound), kind(Plain), ("steps", "list", "method", "gradient")),
    Case("outputs: a block that is never called, tinted", kind(Skipped, layer="block:1"), None, MATTER),
    Case("outputs: a weight taken out, tinted", kind(Reading, layer="block:1"), None, MATTER),
    Case("outputs: a block called under two names, tinted", kind(Twice, layer="block:1"), None, MATTER),
    Case("outputs: a block called under another name, tinted", kind(Alias, layer="block:1"), kind(Plain, layer="block:1"), MATTER),
    Case("outputs: a block under two names, tinted by the other", kind(Alias, layer="again"), kind(Plain, layer="block:1"), MATTER),
    Case("outputs: a block under two names, head tinted", kind(Alias), kind(Plain), MATTER),
    Case("outputs: encoder that counts", kind(Counting), kind(Plain)),
    Case("outputs: encoder that draws", kind(Drawing), None, ("random", "twice", "differ", "same")),
    Case("outputs: encoder that reads the batch", kind(Batchwise), None, ("batch", "samples", "alone", "differ")),
    Case("outputs: dense, classes on axis 1", dense(1, 2), dense(1, 2)),
    Case("outputs: dense, classes last", of(lambda x: x[:, None].expand(-1, 3, -1) + torch.arange(3.0)[:, None], sampler="all"), None,
         ("axis", "class", "(B", "position", "shape", "head")),
    Case("outputs: a loss of one number", named(lambda o, e: (o - e).abs().mean()), None, ("loss", "mine", "objective")),
    Case("outputs: a loss for each class", named(lambda o, e: (o - e).abs()), None, ("loss", "mine", "objective")),
    Case("outputs: a loss without gradient", named(lambda o, e: (o - e).abs().mean(1).detach()), None, ("loss", "mine", "objective", "gradient")),
    Case("outputs: a loss that is constant", named(ignoring), None, ("loss", "mine", "objective", "gradient")),
    Case("outputs: a loss of whole numbers", named(lambda o, e: (o.argmax(1) != e.argmax(1)).long()), None, ("loss", "mine", "objective", "gradient")),
    Case("outputs: a loss of numpy", named(lambda o, e: (o - e).detach().numpy().mean(1)), None, ("loss", "mine", "objective")),
    Case("outputs: a loss of nothing", named(lambda o, e: None), None, ("loss", "mine", "objective")),
    Case("outputs: a loss that is not a number", named(lambda o, e: (o - e).mean(1) * float("nan")), None, ("loss", "mine", "objective")),
    Case("outputs: a loss that changes the expert's output", named(lambda o, e: (o - e.mul_(1)).abs().mean(1)),
         named(lambda o, e: (o - e).abs().mean(1)), ("loss", "mine")),
    Case("outputs: a sampler of shares", sampled(lambda o, e: o.softmax(1).max(1).values), None, ("sampler",)),
    Case("outputs: a sampler of places", sampled(lambda o, e: torch.arange(3)), None, ("sampler",)),
    Case("outputs: a sampler of one truth", sampled(lambda o, e: torch.tensor(True)), None, ("sampler",)),
    Case("outputs: a sampler of a mask that is too long", sampled(lambda o, e: torch.ones(len(o) + 1, dtype=torch.bool)), None, ("sampler",)),
    Case("outputs: a sampler of a mask for each class", sampled(lambda o, e: o > 0), None, ("sampler",)),
    Case("outputs: a sampler of nothing", sampled(lambda o, e: None), None, ("sampler",)),
    Case("outputs: a sampler of numbers 0 and 1", sampled(lambda o, e: torch.ones(len(o), dtype=torch.long)),
         sampled(lambda o, e: torch.ones(len(o), dtype=torch.bool)), ("sampler",)),
    Case("outputs: a sampler as a list", sampled(lambda o, e: [True] * len(o)),
         sampled(lambda o, e: torch.ones(len(o), dtype=torch.bool)), ("sampler",)),
    Case("settings: steps as a text", settled(steps="3"), None, ("steps",)),
    Case("settings: steps as a float", settled(steps=3.0), settled(steps=3), ("steps",)),
    Case("settings: a learning rate that is no number", settled(lr=float("nan")), None, ("lr",)),
    Case("settings: a learning rate as a tensor", settled(lr=torch.tensor(0.01)), settled(lr=0.01), ("lr",)),
    Case("settings: a learning rate of a library", settled(lr=__import__("numpy").float64(0.01)), settled(lr=0.01), ("lr",)),
    Case("settings: a batch size of a library", settled(batch_size=__import__("numpy").int64(8)), settled(batch_size=8), ("batch_size",)),
    Case("settings: a seed below zero", settled(seed=-1), None, ("seed",)),
    Case("settings: a seed beyond 64 bits", settled(seed=2**70), None, ("seed",)),
    Case("settings: a start for an unknown task", settled(init={"cats": 0.3, "birds": 0.3}), None, ("init",)),
    Case("settings: a start for one task", settled(init={"cats": 0.3}), None, ("init",)),
    Case("settings: a start of text", settled(init="0.3"), None, ("init", "0.3")),
    Case("settings: a start of λ that is a tensor", settled(init=torch.tensor(0.3)), settled(init=0.3), ("init",)),
    Case("settings: a start with one tensor's row missing", settled(init={"stem.weight": torch.ones(2)}), None, ("init",)),
    Case("settings: objectives of one task", settled(objective={"cats": "hard"}), None, ("objective",)),
    Case("settings: an objective of another task", settled(objective={"cats": "hard", "dogs": "hard", "x": "hard"}), None, ("objective",)),
    Case("settings: a class as objective", settled(objective=nn.MSELoss), None, ("objective", "MSELoss")),
    Case("settings: a module as objective", settled(objective=nn.MSELoss()), None, ("objective", "MSELoss", "loss")),
    Case("settings: a module with a loss for each", settled(objective=nn.L1Loss(reduction="none")), None, ("objective", "L1Loss", "loss")),
    Case("settings: an unknown one", settled(temperature=2), None, ("temperature",)),
    Case("settings: a layer that is a module", lambda: look(tint(m := make(), plain_data(), layer=m["pretrained"].norm)), None, ("layer",)),
    Case("settings: a layer of a parameter", settled(layer="stem.weight"), None, ("layer",)),
    Case("settings: a layer of all", settled(layer=""), None, ("layer",)),
    Case("settings: a block that is no number", settled(layer="block:last"), None, ("block",)),
    Case("settings: a list of layers", settled(layer=["block:0", "block:1"]), None, ("layer",)),
    Case("settings: more in a batch than there are", settled(batch_size=10 * SAMPLES), settled(batch_size=10 * SAMPLES)),
    Case("settings: processes that are a number", settled(processes=2), None, ("processes",)),
    Case("settings: a task that is no text", lambda: look(tint(
        {k: v if k == "pretrained" else dict(enumerate(v.values())) for k, v in make().items()},
        {0: [vectors(0)], 1: [vectors(1)]})), None, ("string", "task")),
]  # fmt: skip
