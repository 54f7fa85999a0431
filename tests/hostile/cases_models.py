"""Models as they come, and what surrounds the call."""

import copy
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fusion_tinting as ft
from fusion_tinting.families.batch_norm import merge_statistics

from .cases import Case
from .small import TASKS, Plain, experts_of, heads_of, look, make, plain_data, tint, vectors

Models = dict[str, Any]
NAMES = ("expert", "pre-trained", "pretrained", "cats", "head")


@cache
def plain(layer: str | None = "head") -> dict[str, Any]:
    """Return the result for plain models."""
    return look(tint(make(), plain_data(), layer=layer))


def changed(
    change: Callable[[Models], Any], layer: str | None = "head", **options: Any
) -> Callable[[], Any]:
    """Return what tints the plain models after a change."""

    def act() -> Any:
        models = make()
        models = change(models) or models
        return look(tint(models, plain_data(), layer=layer, **options))

    return act


def every(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Models], Models]:
    """Change base and experts."""
    return lambda m: {
        **m,
        "pretrained": wrap(m["pretrained"]),
        "experts": {task: wrap(expert) for task, expert in m["experts"].items()},
    }


def experts(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Models], Models]:
    return lambda m: {**m, "experts": {task: wrap(expert) for task, expert in m["experts"].items()}}


def base(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Models], Models]:
    return lambda m: {**m, "pretrained": wrap(m["pretrained"])}


def heads(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[Models], Models]:
    return lambda m: {**m, "heads": {task: wrap(head) for task, head in m["heads"].items()}}


def one(wrap: Callable[[nn.Module], Any], which: str = "experts") -> Callable[[Models], Models]:
    """Change the expert, or head, of one task."""
    return lambda m: {**m, which: {**m[which], "cats": wrap(m[which]["cats"])}}


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def peft_of(merged: bool = False, only_base: bool = False) -> Callable[[Models], Models]:
    """LoRA adapters on the experts, as peft leaves them."""

    def wrap(models: Models) -> Models:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=2, target_modules=["stem", "blocks.0", "blocks.1"], init_lora_weights=False)
        found = {}
        for task in TASKS:
            torch.manual_seed(hash(task) % 7)
            model = get_peft_model(copy.deepcopy(models["pretrained"]), config)
            found[task] = model.merge_and_unload() if merged else model
        return {**models, "experts": found}

    return wrap


def injected(models: Models) -> Models:
    """Adapters put into the models, without peft's own class around them."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["stem", "blocks.1"], init_lora_weights=False)
    torch.manual_seed(5)
    wrap = lambda model: inject_adapter_in_model(config, copy.deepcopy(model))  # noqa: E731
    return every(wrap)(models)


def weight_norm(model: nn.Module) -> nn.Module:
    parametrizations.weight_norm(model.stem)
    return model


def orthogonal(model: nn.Module) -> nn.Module:
    parametrizations.orthogonal(model.blocks[0])
    return model


def pruned(model: nn.Module) -> nn.Module:
    prune.l1_unstructured(model.blocks[0], "weight", 0.5)
    return model


def with_parameter(
    make_one: Callable[[int], Tensor], where: str = "extra", grad: bool = False
) -> Callable[[Models], Models]:
    """Give base (0) and experts (1, 2) a parameter."""

    def wrap(models: Models) -> Models:
        for place, model in enumerate([models["pretrained"], *models["experts"].values()]):
            model.register_parameter(where, nn.Parameter(make_one(place), requires_grad=grad))
        return models

    return wrap


def with_buffer(make_one: Callable[[int], Tensor]) -> Callable[[Models], Models]:
    def wrap(models: Models) -> Models:
        for place, model in enumerate([models["pretrained"], *models["experts"].values()]):
            model.register_buffer("extra", make_one(place))
        return models

    return wrap


class Scaled(Plain):
    """With a scale of no dimensions, as CLIP's."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.logit_scale


class ScaledByRow(Plain):
    """The same with a scale of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([1.2]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.logit_scale


class Empty(Plain):
    """With a parameter of no element."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0, 3))


class Tied(nn.Module):
    """One matrix for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6, bias=False), nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.down(self.up(x)).tanh())


def apart(model: nn.Module) -> nn.Module:
    """The same values in two tensors."""
    model.again.weight = nn.Parameter(model.again.weight.detach().clone())
    return model


def logits(act: Callable[[], Any]) -> Callable[[], Any]:
    """Without λ, of which there is a row for each tensor."""
    return lambda: {key: value for key, value in act().items() if key != "λ"}


def untied(model: nn.Module) -> nn.Module:
    model.again.weight = nn.Parameter(model.again.weight.detach() + 0.5 * torch.eye(6))
    return model


class Normed(nn.Module):
    """With batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x)).relu()


def as_parameters(models: Models) -> Models:
    """The statistics of batch norms as parameters, by hand."""
    return every(merge_statistics)(other_statistics(models))


def other_statistics(models: Models) -> Models:
    for place, model in enumerate(models["experts"].values()):
        model.norm.running_mean += 0.5 + place
        model.norm.running_var *= 2 + place
    return models


class Blocks(nn.Module):
    """Blocks in something."""

    def __init__(self, around: Callable[[list[nn.Module]], nn.Module], blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem, self.layers = nn.Linear(5, 6), around(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.layers.children():
            x = stage(x)
        return x


class Block(nn.Module):
    """A block, the first of which may lack its norm."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6) if norm else nn.Identity()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x)).tanh()


def tower(around: Callable[[list[nn.Module]], nn.Module], first: bool = True, count: int = 3) -> Models:
    torch.manual_seed(0)
    pretrained = Blocks(around, [Block(first), *(Block() for _ in range(count - 1))])
    return {"pretrained": pretrained, "experts": experts_of(pretrained), "heads": heads_of()}


def listed(blocks: list[nn.Module]) -> nn.Module:
    return nn.ModuleList(blocks)


def sequential(blocks: list[nn.Module]) -> nn.Module:
    return nn.Sequential(*blocks)


def named(blocks: list[nn.Module]) -> nn.Module:
    found = nn.Sequential()
    for place, block in enumerate(blocks):
        found.add_module(f"encoder_layer_{place}", block)
    return found


def stages(blocks: list[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Sequential(*blocks[:1]), nn.Sequential(*blocks[1:]))


def dictionary(blocks: list[nn.Module]) -> nn.Module:
    return nn.ModuleDict({f"layer{place}": block for place, block in enumerate(blocks)})


def block(
    around: Callable[[list[nn.Module]], nn.Module], index: int, first: bool = True
) -> Callable[[], Any]:
    return lambda: look(tint(tower(around, first), plain_data(), layer=f"block:{index}"))


def inside(
    around: Callable[[list[nn.Module]], nn.Module], path: str, first: bool = True
) -> Callable[[], Any]:
    return lambda: look(tint(tower(around, first), plain_data(), layer=path))


def within(enter: Callable[[], Any], layer: str = "head", **options: Any) -> Callable[[], Any]:
    """Return what tints the plain models within a context, and looks at the result outside."""

    def act() -> Any:
        models, unlabeled = make(), plain_data()
        with enter():
            model = tint(models, unlabeled, layer=layer, **options)
        return look(model)

    return act


class Setting:
    """A global setting, as a context."""

    def __init__(self, put: Callable[[Any], Any], get: Callable[[], Any], value: Any) -> None:
        self.put, self.get, self.value = put, get, value

    def __enter__(self) -> None:
        self.before = self.get()
        self.put(self.value)

    def __exit__(self, *_: object) -> None:
        self.put(self.before)


def default_dtype(dtype: torch.dtype) -> Callable[[], Setting]:
    return lambda: Setting(torch.set_default_dtype, torch.get_default_dtype, dtype)


def deterministic() -> Setting:
    return Setting(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, True)


def no_gradients() -> Setting:
    return Setting(torch.set_grad_enabled, torch.is_grad_enabled, False)


def uncopied(model: nn.Module) -> nn.Module:
    model.lock = threading.Lock()
    return model


def generating(model: nn.Module) -> nn.Module:
    model.generator = (i for i in range(3))
    return model


def nonleaf(model: nn.Module) -> nn.Module:
    model.scale = torch.ones(3, requires_grad=True) * 2
    return model


def bound_forward(model: nn.Module) -> nn.Module:
    """`forward` of the instance calls the original, whatever copy it is in."""
    original = model.forward
    model.forward = lambda x: original(x)
    return model


def own_forward(model: nn.Module) -> nn.Module:
    model.blocks[0].forward = lambda x: nn.functional.linear(x, model.blocks[0].weight)
    return model


def patched_forward(model: nn.Module) -> nn.Module:
    model.forward = partial(type(model).forward, model)
    return model


def hooked(model: nn.Module) -> nn.Module:
    model.norm.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def hooked_before(model: nn.Module) -> nn.Module:
    model.stem.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return model


def hooked_backward(model: nn.Module) -> nn.Module:
    model.norm.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 0,))
    return model


def doubled(model: nn.Module) -> nn.Module:
    """The same as `hooked`, by weights."""
    model.norm.weight.data *= 2
    model.norm.bias.data *= 2
    return model


def half(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    return lambda model: model.to(dtype)


def rounded(dtype: torch.dtype) -> Callable[[nn.Module], nn.Module]:
    return lambda model: model.to(dtype).float()


def dtypes(change: Callable[[Models], Any], layer: str = "head") -> Callable[[], Any]:
    """Return what gives the kinds of number that come back."""

    def act() -> Any:
        model = tint(change(make()), plain_data(), layer=layer)
        return {str(p.dtype) for p in model.merged.parameters()}

    return act


def quantized(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def scripted(model: nn.Module) -> Any:
    return torch.jit.trace(model, torch.ones(2, 5))


class Lazy(Plain):
    """With a layer that has no weights yet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LazyLinear(6)


class Sliced(Plain):
    """Two parameters that overlap."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        whole = torch.randn(7, 6)
        self.blocks[0].weight = nn.Parameter(whole[:6].clone() if apart else whole[:6])
        self.blocks[1].weight = nn.Parameter(whole[1:])


def on_views(model: nn.Module) -> nn.Module:
    model.stem.weight.data = model.stem.weight.data.T.contiguous().T
    return model


def without(name: str) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        delattr(model, name)
        return model

    return wrap


def poisoned(value: float) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        model.stem.weight.data[0, 0] = value
        return model

    return wrap


def wider(model: nn.Module) -> nn.Module:
    model.stem = nn.Linear(5, 6, bias=False)
    return model


class Other(Plain):
    """Another class with the same tensors, that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


def as_other(model: nn.Module) -> nn.Module:
    model.__class__ = Other
    return model


def other_activation(model: nn.Module) -> nn.Module:
    model.norm.eps = 1.0
    return model


def unchanged(act: Callable[[Models], Any]) -> Callable[[], Any]:
    """Return what tells whether the caller's models are as they were."""

    def check() -> Any:
        models = make()
        every_one = [models["pretrained"], *models["experts"].values(), *models["heads"].values()]
        for model in every_one:
            model.train()
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in every_one]
        act(models)
        same = all(
            torch.equal(b[k], v)
            for b, m in zip(before, every_one, strict=True)
            for k, v in m.state_dict().items()
        )
        return (
            same,
            all(m.training for m in every_one),
            all(p.requires_grad and p.grad is None for m in every_one for p in m.parameters()),
        )

    return check


def kind(
    model: type[nn.Module], change: Callable[[Models], Any] = dict, **options: Any
) -> Callable[[], Any]:
    return lambda: look(tint(change(make(model)), plain_data(), **options))


def scale_as_row() -> Any:
    """The result of the scale with a dimension, with noise as without."""
    scaled, rows = make(Scaled), make(ScaledByRow)
    for one_, other in zip(
        [rows["pretrained"], *rows["experts"].values()],
        [scaled["pretrained"], *scaled["experts"].values()],
        strict=True,
    ):
        one_.load_state_dict({k: v.reshape(1) if v.ndim == 0 else v for k, v in other.state_dict().items()})
    return look(tint(rows, plain_data()))


def threads_of_two() -> Any:
    found: dict[int, Any] = {}

    def run(seed: int, models: Models) -> None:
        found[seed] = look(tint(models, plain_data(), seed=seed))

    work = [threading.Thread(target=run, args=(seed, make())) for seed in (0, 1)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    return {f"{seed} {key}": value for seed in sorted(found) for key, value in found[seed].items()}


def one_by_one() -> Any:
    return {
        f"{seed} {k}": v for seed in (0, 1) for k, v in look(tint(make(), plain_data(), seed=seed)).items()
    }


def after_inference() -> Any:
    """What comes out of `inference_mode` can be trained on."""
    models, unlabeled = make(), plain_data()
    with torch.inference_mode():
        model = tint(models, unlabeled)
    head = nn.Linear(4, 1)
    head(model(vectors(7), "cats")).sum().backward()
    return look(model)


WRAPPED = ("DataParallel", "wrap", "module", "compil", *NAMES)
CASES = [
    Case("models: DataParallel, all", changed(every(nn.DataParallel)), plain, WRAPPED),
    Case("models: DataParallel, experts alone", changed(experts(nn.DataParallel)), plain, WRAPPED),
    Case("models: DataParallel, base alone", changed(base(nn.DataParallel)), plain, WRAPPED),
    Case("models: DataParallel, a tinted block", changed(every(nn.DataParallel), "block:1"), lambda: plain("block:1"), WRAPPED),
    Case("models: DataParallel heads", changed(heads(nn.DataParallel)), plain, WRAPPED),
    Case("models: compiled, all", changed(every(compiled)), plain, WRAPPED),
    Case("models: compiled, experts alone", changed(experts(compiled)), plain, WRAPPED),
    Case("models: compiled heads", changed(heads(compiled)), plain, WRAPPED),
    Case("models: compiled, a tinted block", changed(every(compiled), "block:0"), lambda: plain("block:0"), WRAPPED),
    Case("models: traced", changed(every(scripted)), plain, ("Script", "trace", *NAMES)),
    Case("models: peft's experts", changed(peft_of()), changed(peft_of(merged=True)), ("peft", "PEFT", "merge_and_unload", "LoRA", "adapter")),
    Case("models: peft's experts, a tinted block", changed(peft_of(), "block:1"), changed(peft_of(merged=True), "block:1"), ("peft", "PEFT", "merge_and_unload", "LoRA", "adapter")),
    Case("models: injected adapters", changed(injected), None, ("peft", "PEFT", "LoRA", "adapter", "merge")),
    Case("models: injected adapters, experts alone", changed(lambda m: {**m, "experts": injected(m)["experts"]}), None, ("peft", "PEFT", "LoRA", "adapter", "merge")),
    Case("models: weight norm", changed(every(weight_norm)), None, ("parametri", "weight_norm", "stem")),
    Case("models: weight norm, experts alone", changed(experts(weight_norm)), plain, ("parametri", "weight_norm", "stem")),
    Case("models: an orthogonal layer", changed(every(orthogonal)), None, ("parametri", "orthogonal", "blocks.0")),
    Case("models: pruned experts", changed(experts(pruned)), None, ("prun", "weight_orig", "weight_mask", "blocks.0")),
    Case("models: all pruned", changed(every(pruned)), None, ("prun", "weight_orig", "weight_mask", "blocks.0")),
    Case("models: quantized", changed(every(quantized)), None, ("quant", "parameters", *NAMES)),
    Case("models: quantized experts", changed(experts(quantized)), None, ("quant", "parameters", *NAMES)),
    Case("models: base on meta", changed(base(lambda m: m.to("meta"))), None, ("meta",)),
    Case("models: experts on meta", changed(experts(lambda m: m.to("meta"))), None, ("meta",)),
    Case("models: one expert's layer on meta", changed(one(lambda m: (m.norm.to("meta"), m)[1])), None, ("meta",)),
    Case("models: a head on meta", changed(one(lambda m: m.to("meta"), "heads")), None, ("meta",)),
    Case("models: lazy layers", kind(Lazy), None, ("Lazy", "lazy", "initial", "uninitialized", "no shape")),
    Case("models: a lazy head", changed(heads(lambda m: nn.LazyLinear(4))), None, ("Lazy", "lazy", "initial", "uninitialized", "no shape")),
    Case("models: whole numbers that differ", changed(with_parameter(lambda p: torch.tensor([p, 2]))), None, ("extra",)),
    Case("models: whole numbers that are equal", changed(with_parameter(lambda p: torch.tensor([1, 2]))), plain, ("extra",)),
    Case("models: bytes that differ", changed(with_parameter(lambda p: torch.tensor([p, 2], dtype=torch.uint8))), None, ("extra",)),
    Case("models: truths that differ", changed(with_parameter(lambda p: torch.tensor([p > 0, True]))), None, ("extra",)),
    Case("models: complex numbers that differ", changed(with_parameter(lambda p: torch.tensor([1j * p, 2])), layer="head"), None, ("extra",)),
    Case("models: complex numbers that are equal", changed(with_parameter(lambda p: torch.tensor([1j, 2]))), plain, ("extra",)),
    Case("models: sparse parameters", changed(with_parameter(lambda p: torch.eye(3).mul(p + 1).to_sparse())), None, ("extra", "sparse")),
    Case("models: 8-bit floats that differ", changed(with_parameter(lambda p: torch.tensor([p, 2.0]).to(torch.float8_e4m3fn))), None, ("extra", "float8")),
    Case("models: a buffer of numbers that differ", changed(with_buffer(lambda p: torch.tensor([p, 2.0]))), None, ("extra", "buffer")),
    Case("models: a buffer of whole numbers that differ", changed(with_buffer(lambda p: torch.tensor([p, 2]))), None, ("extra", "buffer")),
    Case("models: buffers that are equal", changed(with_buffer(lambda p: torch.tensor([1, 2]))), plain),
    Case("models: frozen parameters", changed(every(lambda m: m.requires_grad_(False))), plain),
    Case("models: a scale of no dimensions", kind(Scaled), scale_as_row),
    Case("models: a scale of no dimensions, λ by block", kind(Scaled, granularity="block"), kind(Scaled, granularity="block")),
    Case("models: a parameter of no element", kind(Empty), kind(Empty), ("nothing",)),
    Case("models: strided weights", changed(every(on_views)), plain),
    Case("models: overlapping parameters", kind(Sliced), None, ("stem", "blocks.0", "overlap", "memory", "share")),
    Case("models: tied, one end tinted", logits(kind(Tied, layer="again")), logits(kind(Tied, every(apart), layer="again")), ("tie", "again", "down", "shared")),
    Case("models: tied, the other end tinted", kind(Tied, layer="down"), None, ("tie", "again", "down", "shared")),
    Case("models: tied, head tinted", kind(Tied), kind(Tied)),
    Case("models: tied base, untied experts", kind(Tied, experts(untied)), None, ("tie", "again", "down", "shared")),
    Case("models: untied base, tied experts", kind(Tied, base(untied)), kind(Tied, lambda m: experts(apart)(base(untied)(m))), ("tie", "again", "down", "shared")),
    Case("models: one expert untied", kind(Tied, one(untied)), None, ("tie", "again", "down", "shared")),
    Case("models: bf16 experts over a float32 base", changed(experts(half(torch.bfloat16))), changed(experts(rounded(torch.bfloat16)))),
    Case("models: float16 all", changed(every(half(torch.float16))), changed(every(rounded(torch.float16)))),
    Case("models: bf16 all, a tinted block", changed(every(half(torch.bfloat16)), "block:1"), changed(every(rounded(torch.bfloat16)), "block:1")),
    Case("models: bf16 heads", changed(heads(half(torch.bfloat16))), changed(heads(rounded(torch.bfloat16)))),
    Case("models: double all", changed(every(half(torch.float64))), plain, ("float64", "double")),
    Case("models: a double base", changed(base(half(torch.float64))), plain, ("float64", "double")),
    Case("models: double heads", changed(heads(half(torch.float64))), plain, ("float64", "double")),
    Case("models: the dtype of bf16 comes back", dtypes(every(half(torch.bfloat16))), lambda: {"torch.bfloat16"}, ("bfloat16",)),
    Case("models: the dtype of float32 comes back", dtypes(dict), lambda: {"torch.float32"}),
    Case("models: a double dtype comes back", dtypes(every(half(torch.float64))), lambda: {"torch.float64"}, ("float64",)),
    *(Case(f"around: default dtype {dtype}", within(default_dtype(dtype), layer), lambda la=layer: plain(la), ("dtype",))
      for dtype in (torch.float64, torch.bfloat16, torch.float16) for layer in ("head", "block:1")),
    Case("around: default dtype float64, joint", within(default_dtype(torch.float64), update="joint"), changed(dict, update="joint"), ("dtype",)),
    Case("around: no_grad", within(torch.no_grad), plain, ("no_grad",)),
    Case("around: gradients off", within(no_gradients), plain, ("grad",)),
    Case("around: no_grad, a tinted block", within(torch.no_grad, "block:1"), lambda: plain("block:1"), ("no_grad",)),
    Case("around: inference mode", within(torch.inference_mode), plain, ("inference",)),
    Case("around: inference mode, a tinted block", within(torch.inference_mode, "block:0"), lambda: plain("block:0"), ("inference",)),
    Case("around: inference mode, and trained on after it", after_inference, plain, ("inference",)),
    Case("around: autocast", within(lambda: torch.autocast("cpu", torch.bfloat16)), plain, ("autocast",)),
    Case("around: autocast to float16, a tinted block", within(lambda: torch.autocast("cpu", torch.float16), "block:0"), lambda: plain("block:0"), ("autocast",)),
    Case("around: default device meta", within(lambda: torch.device("meta")), plain, ("device", "meta")),
    Case("around: default device meta, a tinted block", within(lambda: torch.device("meta"), "block:0"), lambda: plain("block:0"), ("device", "meta")),
    Case("around: deterministic algorithms", within(deterministic), plain, ("deterministic",)),
    Case("around: anomaly mode", within(lambda: torch.autograd.set_detect_anomaly(True)), plain, ("anomaly",)),
    Case("around: two runs in two threads", threads_of_two, one_by_one),
    Case("around: a saved-tensors hook", within(lambda: torch.autograd.graph.save_on_cpu()), plain),
    Case("models: a lock inside", changed(every(uncopied)), None, ("cop", "lock", *NAMES)),
    Case("models: a lock inside an expert", changed(one(uncopied)), None, ("cop", "lock", *NAMES)),
    Case("models: a generator inside", changed(every(generating)), None, ("cop", "generator", *NAMES)),
    Case("models: a tensor with a history inside", changed(every(nonleaf)), None, ("cop", "scale", *NAMES)),
    Case("models: a lock inside a head", changed(one(uncopied, "heads")), None, ("cop", "lock", *NAMES)),
    Case("models: forward bound to the original", changed(every(bound_forward)), plain, ("forward",)),
    Case("models: forward bound to the original, base alone", changed(base(bound_forward)), plain, ("forward",)),
    Case("models: forward bound to the original, experts alone", changed(experts(bound_forward)), plain, ("forward",)),
    Case("models: forward bound to the original, a head", changed(heads(bound_forward)), plain, ("forward",)),
    Case("models: forward as a partial", changed(every(patched_forward)), plain, ("forward",)),
    Case("models: forward of a layer replaced", changed(every(own_forward)), None, ("forward", "blocks.0")),
    Case("models: hooks on all", changed(every(hooked)), changed(every(doubled)), ("hook",)),
    Case("models: a hook on the base alone", changed(base(hooked)), None, ("hook",)),
    Case("models: hooks on the experts alone", changed(experts(hooked)), None, ("hook",)),
    Case("models: a hook on one expert", changed(one(hooked)), None, ("hook",)),
    Case("models: hooks before the stem", changed(experts(hooked_before)), None, ("hook",)),
    Case("models: hooks on the heads", changed(heads(lambda h: (h.register_forward_hook(lambda m, i, o: o * 2), h)[1]), "block:1"),
         changed(heads(lambda h: (h.weight.data.mul_(2), h.bias.data.mul_(2), h)[2]), "block:1"), ("hook",)),
    Case("models: a hook in the backward pass", changed(every(hooked_backward)), None, ("hook", "gradient")),
    Case("models: in training mode", changed(lambda m: {k: (v.train() if k == "pretrained" else {t: e.train() for t, e in v.items()}) for k, v in m.items()}), plain),
    Case("models: batch-norm statistics that differ", kind(Normed, other_statistics), kind(Normed, as_parameters), ("norm", "buffer", "statistic", "running_mean", "running_var")),
    Case("models: batch-norm statistics that are equal", kind(Normed), kind(Normed)),
    Case("models: one expert object for two tasks", changed(lambda m: {**m, "experts": dict.fromkeys(TASKS, m["experts"]["cats"])}),
         changed(lambda m: {**m, "experts": {t: copy.deepcopy(m["experts"]["cats"]) for t in TASKS}}), ("same", "expert")),
    Case("models: the base as an expert", changed(lambda m: {**m, "experts": {**m["experts"], "cats": m["pretrained"]}}),
         changed(lambda m: {**m, "experts": {**m["experts"], "cats": copy.deepcopy(m["pretrained"])}}), ("same", "expert")),
    Case("models: one head object for two tasks", changed(lambda m: {**m, "heads": dict.fromkeys(TASKS, m["heads"]["cats"])}),
         changed(lambda m: {**m, "heads": {t: copy.deepcopy(m["heads"]["cats"]) for t in TASKS}}), ("same", "head")),
    Case("models: one head object for two tasks, a tinted block", changed(lambda m: {**m, "heads": dict.fromkeys(TASKS, m["heads"]["cats"])}, "block:1"),
         changed(lambda m: {**m, "heads": {t: copy.deepcopy(m["heads"]["cats"]) for t in TASKS}}, "block:1"), ("same", "head")),
    Case("models: experts that share a stem", changed(lambda m: (setattr(m["experts"]["dogs"], "stem", m["experts"]["cats"].stem), m)[1]),
         changed(lambda m: (m["experts"]["dogs"].stem.load_state_dict(m["experts"]["cats"].stem.state_dict()), m)[1])),
    Case("models: a bare head", changed(heads(lambda h: nn.Identity())), None, ("head", "parameters")),
    Case("models: a bare head, a tinted block", changed(heads(lambda h: nn.Identity()), "block:1"), changed(heads(lambda h: nn.Identity()), "block:1")),
    Case("models: a head with batch-norm", changed(heads(lambda h: nn.Sequential(h, nn.BatchNorm1d(4)))), changed(heads(lambda h: nn.Sequential(h, nn.BatchNorm1d(4))))),
    Case("models: a function as head", changed(heads(lambda h: lambda x: h(x))), None, ("head", "module")),
    Case("models: a state_dict as expert", changed(one(lambda m: m.state_dict())), None, ("cats", "expert", "module")),
    Case("models: a path as expert", changed(one(lambda m: "model.pt")), None, ("cats", "expert", "module")),
    Case("models: no expert", changed(lambda m: {**m, "experts": {}, "heads": {}}), None, ("expert", "unlabeled")),
    Case("models: one expert", lambda: look(tint(make(tasks=("cats",)), plain_data(("cats",)))), lambda: look(tint(make(tasks=("cats",)), plain_data(("cats",))))),
    Case("models: experts as a list", changed(lambda m: {**m, "experts": list(m["experts"].values())}), None, ("expert",)),
    Case("models: an expert without a layer", changed(one(without("norm"))), None, ("norm",)),
    Case("models: an expert with a layer more", changed(one(lambda m: (m.add_module("more", nn.Linear(2, 2)), m)[1])), None, ("more",)),
    Case("models: an expert of another width", changed(one(lambda m: (setattr(m, "stem", nn.Linear(4, 6)), m)[1])), None, ("stem",)),
    Case("models: an expert without a bias", changed(one(wider)), None, ("stem.bias",)),
    Case("models: an expert of another class", changed(one(as_other)), None, ("class", "Other", "forward", "cats")),
    Case("models: experts of another constant", changed(experts(other_activation)), None, ("eps", "norm", "attribute", "cats")),
    Case("models: an expert with not a number", changed(one(poisoned(float("nan")))), None, ("stem.weight", "finite", "nan", "NaN")),
    Case("models: a base with infinity", changed(base(poisoned(float("inf")))), None, ("stem.weight", "finite", "inf")),
    Case("models: a head with not a number", changed(one(lambda h: (h.weight.data.fill_(float("nan")), h)[1], "heads")), None, ("head", "finite", "nan", "cats")),
    Case("models: blocks in a Sequential", block(sequential, 1), inside(sequential, "layers.1"), ("block",)),
    Case("models: the last block in a Sequential", block(sequential, -1), inside(sequential, "layers.2"), ("block",)),
    Case("models: blocks with names", block(named, 0), inside(named, "layers.encoder_layer_0"), ("block",)),
    Case("models: a first block that differs", block(listed, -1, False), inside(listed, "layers.2", False), ("block",)),
    Case("models: a first block that differs, tinted", block(listed, 0, False), inside(listed, "layers.0", False), ("block",)),
    Case("models: blocks in stages", block(stages, -1), inside(stages, "layers.1.1"), ("block",)),
    Case("models: blocks in a ModuleDict", block(dictionary, 1), inside(dictionary, "layers.layer1"), ("block",)),
    Case("models: the caller's are as they were", unchanged(lambda m: tint(m, plain_data())), lambda: (True, True, True)),
    Case("models: the caller's are as they were, a tinted block", unchanged(lambda m: tint(m, plain_data(), layer="block:0", update="joint")), lambda: (True, True, True)),
    Case("models: the caller's are as they were, auto", unchanged(lambda m: tint(m, plain_data(), layer="auto")), lambda: (True, True, True)),
    Case("models: merged weights are θ(λ)", lambda: _theta(tint(make(), plain_data(), layer=None)), lambda: True),
]  # fmt: skip


def _theta(model: ft.TintedModel) -> bool:
    models = make()
    base_, found = dict(models["pretrained"].named_parameters()), dict(model.merged.named_parameters())
    each = [dict(expert.named_parameters()) for expert in models["experts"].values()]
    wanted = {
        n: b + sum(c * (e[n] - b) for c, e in zip(model.coefficients[n], each, strict=True))
        for n, b in base_.items()
    }
    return all(torch.allclose(found[n], w, atol=1e-6) for n, w in wanted.items())
