"""Two runs that differ, and two that do not: a folder, a checkpoint, an artifact and the cache must know.

A run is made, then another in its place, with one thing changed. The second must give what it gives alone, or be
refused.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fusion_tinting as ft
from fusion_tinting.run import checkpoint

from .cases import Case
from .small import TASKS, Plain, experts_of, look, tint, vectors

Run = dict[str, Any]
WORDS = ("another", "differ", "changed", "same", "name", "cats", "holds")
STEPS = 6


class Rich(Plain):
    """An encoder that reads more than its parameters."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(6))
        self.register_buffer("hidden", torch.zeros(6), persistent=False)
        self.register_buffer("places", torch.arange(6))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.factor, self.flags, self.array = (
            1.0,
            {"negative": False, "powers": [1, 1]},
            np.ones(6, dtype="f"),
        )
        self.loose, self.listed = torch.ones(6), [nn.Linear(6, 6)]
        self.activation: Any = torch.tanh
        self.settings = SimpleNamespace(slope=0.0)
        self.limit: tuple[Any, ...] = (None, "none")
        torch.manual_seed(6)
        nn.init.normal_(self.listed[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = (x + self.shift + self.hidden)[:, self.places] * self.frozen * self.factor * self.scale
        x = x * torch.from_numpy(self.array) * self.loose + 0.1 * self.listed[0](x)
        x = -x if self.flags["negative"] else x ** self.flags["powers"][1]
        x = self.activation(x) + self.settings.slope * x
        return x if self.limit[0] is None else x.clamp(max=self.limit[0])


class RichHead(nn.Module):
    """A head that does so too."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False)
        self.temperature, self.activation = 1.0, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.layer(x))) * self.temperature


def rich_run() -> Run:
    """Return what `tint` is given."""
    torch.manual_seed(0)
    pretrained = Rich()
    experts = experts_of(pretrained)
    for expert in experts.values():
        expert.frozen.data.fill_(1.0)  # equal everywhere
    heads = {task: RichHead(place + 40) for place, task in enumerate(TASKS)}
    data = {task: [vectors(place, 200)] for place, task in enumerate(TASKS)}
    return {
        "pretrained": pretrained,
        "experts": experts,
        "heads": heads,
        "unlabeled": data,
        "layer": "head",
    }


def start(run: Run, **options: Any) -> ft.TintedModel:
    run = {**run, **options}
    models = {name: run.pop(name) for name in ("pretrained", "experts", "heads")}
    return tint(models, run.pop("unlabeled"), **{"steps": STEPS, "batch_size": 40, **run})


# Ways to put the second run in the place of the first; each run is made when it is its turn.

Make = Callable[[], Run]


def finished(first: Make, second: Make) -> Any:
    with TemporaryDirectory() as folder:
        start(first(), run_dir=folder)
        return look(start(second(), run_dir=folder))


def interrupted(first: Make, second: Make) -> Any:
    with TemporaryDirectory() as folder:
        stop_halfway(first(), folder)
        return look(start(second(), run_dir=folder))


def cached(first: Make, second: Make) -> Any:
    start(first())
    return look(start(second()))


def loaded(first: Make, second: Make) -> Any:
    with TemporaryDirectory() as folder:
        start(first(), run_dir=folder)
        models = {k: v for k, v in second().items() if k in ("pretrained", "experts", "heads")}
        return look(ft.TintedModel.load(folder, **models))


def stop_halfway(run: Run, folder: str | Path) -> None:
    before, checkpoint.EVERY = checkpoint.EVERY, 2
    try:
        start(run, run_dir=folder, on_step=_stop)
    except InterruptedError:
        pass
    finally:
        checkpoint.EVERY = before


def _stop(step: int, _: Any) -> None:
    if step == 4:
        raise InterruptedError


WAYS = {"finished": finished, "interrupted": interrupted, "cached": cached, "loaded": loaded}


def differing(
    name: str,
    change: Callable[[Run], Any],
    ways: str = "finished interrupted cached loaded",
    **options: Any,
) -> list[Case]:
    """Cases of a run in another's place, in each of the ways."""

    def first() -> Run:
        return rich_run() | options

    def second() -> Run:
        run = first()
        change(run)
        return run

    return between(name, first, second, ways)


def between(name: str, first: Make, second: Make, ways: str = "finished interrupted") -> list[Case]:
    """The same with both given; the cache and loading do not ask for settings."""
    one, two = (lambda: rich_run() | first()), (lambda: rich_run() | second())
    return [
        Case(f"identity: {name}, {way}", partial(WAYS[way], one, two), lambda: look(start(two())), WORDS)
        for way in ways.split()
    ]


def every_expert(change: Callable[[nn.Module], Any]) -> Callable[[Run], None]:
    """Change base and experts alike, so that they still fit."""

    def apply(run: Run) -> None:
        for model in (run["pretrained"], *run["experts"].values()):
            change(model)

    return apply


def every_head(change: Callable[[nn.Module], Any]) -> Callable[[Run], None]:
    return lambda run: [change(head) for head in run["heads"].values()] and None


def put(path: str, value: Any, made: bool = False) -> Callable[[Any], None]:
    """Set an attribute; a value that is `made` anew for each."""

    def apply(model: Any) -> None:
        *way, last = path.split(".")
        for name in way:
            model = getattr(model, name)
        setattr(model, last, value() if made else value)

    return apply


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def plus_one(module: nn.Module, inputs: Any) -> Any:
    return (inputs[0] + 1,)


def other_forward(self: nn.Module, x: Tensor) -> Tensor:
    return 2 * nn.functional.layer_norm(x, (6,), self.weight, self.bias)


class Warm(Rich):
    """The same class with another constant."""

    scale = 0.7


class Cubed(Rich):
    """The same with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


class Lifted(nn.Module):
    """A layer with the same parameters as another kind of layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias) + 0.5


def change_data(row: int, value: float = 3.0) -> Callable[[Run], None]:
    def apply(run: Run) -> None:
        run["unlabeled"]["cats"][0][row] = value

    return apply


def data_of(make: Callable[[Tensor], Any]) -> Callable[[], Run]:
    return lambda: {"unlabeled": {task: make(vectors(place, 200)) for place, task in enumerate(TASKS)}}


def with_row(x: Tensor, row: int) -> Tensor:
    x = x.clone()
    x[row] += 1.0
    return x


# Functions of the user's.
LIMIT = 1.5


def keep(output: Tensor, expert: Tensor) -> Tensor:
    return expert.max(1).values < LIMIT


def helper(x: Tensor) -> Tensor:
    return x.abs()


def with_helper(output: Tensor, expert: Tensor) -> Tensor:
    return helper(output - expert).mean(1)


class Keeping:
    """A sampler that is an object."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, output: Tensor, expert: Tensor) -> Tensor:
        return expert.max(1).values < self.limit

    def keep(self, output: Tensor, expert: Tensor) -> Tensor:
        return expert.max(1).values < self.limit


class Tempered(nn.Module):
    """An objective that is a module."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, output: Tensor, expert: Tensor) -> Tensor:
        return (output / self.temperature - expert).abs().mean(1)


def limited(limit: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, expert: expert.max(1).values < limit


def by_default(limit: float) -> Any:
    def keep(output: Tensor, expert: Tensor, limit: float = limit) -> Tensor:
        return expert.max(1).values < limit

    return keep


def of_global(limit: float) -> Any:
    def keep(output: Tensor, expert: Tensor) -> Tensor:
        return expert.max(1).values < BOUNDS["limit"]

    BOUNDS["limit"] = limit
    return keep


BOUNDS = {"limit": 1.0}


def cells(value: list) -> Any:
    def keep(output: Tensor, expert: Tensor) -> Tensor:
        return expert.max(1).values < sum(value)

    return keep


def of_partial(limit: float) -> Any:
    return partial(lambda output, expert, limit: expert.max(1).values < limit, limit=limit)


def of_comprehension(limit: float) -> Any:
    return lambda o, e: torch.tensor([bool(row.max() < limit) for row in e])


SAMPLERS: dict[str, Callable[[float], Any]] = {
    "closure": limited, "default": by_default, "global": of_global, "cell of a list": lambda x: cells([x]),
    "partial": of_partial, "object": Keeping, "bound method": lambda x: Keeping(x).keep,
    "comprehension": of_comprehension, "attribute of a function": lambda x: attributed(x),
    "class's attribute": lambda x: type("Own", (), {"limit": x, "__call__": lambda s, o, e: e.max(1).values < s.limit})(),
}  # fmt: skip


def attributed(limit: float) -> Any:
    def keep(output: Tensor, expert: Tensor) -> Tensor:
        return expert.max(1).values < keep.limit  # type: ignore[attr-defined]

    keep.limit = limit  # type: ignore[attr-defined]
    return keep


OBJECTIVES: dict[str, Callable[[float], Any]] = {
    "module": Tempered,
    "closure": lambda t: lambda o, e: (o / t - e).abs().mean(1),
    "Objective named as ours": lambda t: ft.Objective("hard", Tempered(t)),
    "nested function": lambda t: lambda o, e: (lambda d: (d / t - e).abs().mean(1))(o),
    "partial": lambda t: partial(lambda o, e, t: (o / t - e).abs().mean(1), t=t),
    "per task": lambda t: {"cats": Tempered(t), "dogs": "hard"},
}

MODELS: dict[str, Callable[[nn.Module], Any]] = {
    "buffer": put("shift", lambda: torch.ones(6), made=True),
    "buffer that is not saved": put("hidden", lambda: torch.ones(6), made=True),
    "whole-number buffer": put("places", lambda: torch.arange(6).flip(0), made=True),
    "frozen parameter": lambda m: m.frozen.data.mul_(3),
    "number": put("factor", 0.5),
    "number by a trifle": put("factor", 1.001),
    "flag in a dict": lambda m: m.flags.update(negative=True),
    "number in a list in a dict": lambda m: m.flags["powers"].__setitem__(1, 2),
    "array": lambda m: m.array.__imul__(2),
    "tensor that is no buffer": lambda m: m.loose.mul_(2),
    "module in a list": lambda m: m.listed[0].weight.data.mul_(-3),
    "function": put("activation", torch.relu),
    "lambda": lambda m: setattr(m, "activation", lambda x: x * 0.3),
    "bound method": lambda m: setattr(m, "activation", nn.Softsign().forward),
    "module as function": lambda m: setattr(m, "activation", nn.ELU()),
    "namespace": put("settings.slope", 0.5),
    "tuple": put("limit", (0.1, "none")),
    "epsilon": put("norm.eps", 1.0),
    "hook": lambda m: m.norm.register_forward_hook(doubled),
    "hook before": lambda m: m.stem.register_forward_pre_hook(plus_one),
    "forward of a layer": lambda m: setattr(m.norm, "forward", MethodType(other_forward, m.norm)),
    "class": lambda m: setattr(m, "__class__", Cubed),
    "class's constant": lambda m: setattr(m, "__class__", Warm),
    "layer's class": lambda m: setattr(m, "stem", Lifted(m.stem)),
    "instance's constant": lambda m: setattr(m, "scale", 0.5),
    "one weight by a trifle": lambda m: m.stem.weight.data.__setitem__((0, 0), m.stem.weight.data[0, 0] + 1e-3),
}  # fmt: skip

HEADS: dict[str, Callable[[nn.Module], Any]] = {
    "number": put("temperature", 3.0),
    "statistics": lambda h: h.norm.running_mean.add_(1),
    "momentum": put("norm.momentum", 0.5),
    "epsilon": put("norm.eps", 1.0),
    "activation": put("activation", nn.Tanh()),
    "negative slope": lambda h: setattr(h, "activation", nn.LeakyReLU(0.5)),
    "hook": lambda h: h.layer.register_forward_hook(doubled),
    "forward": lambda h: setattr(h.norm, "forward", lambda x: x * 2),
    "weight": lambda h: h.layer.weight.data.mul_(1.01),
}  # fmt: skip


def first_two_in_one(run: Run) -> None:
    """Exchange the experts of two tasks."""
    cats, dogs = TASKS
    run["experts"] = {cats: run["experts"][dogs], dogs: run["experts"][cats]}


def exchange_heads(run: Run) -> None:
    cats, dogs = TASKS
    run["heads"] = {cats: run["heads"][dogs], dogs: run["heads"][cats]}


def exchange_data(run: Run) -> None:
    cats, dogs = TASKS
    run["unlabeled"] = {cats: run["unlabeled"][dogs], dogs: run["unlabeled"][cats]}


def block_tint(run: Run) -> None:
    run["layer"] = "block:1"


# The same run once more: it must be taken for what it is.


def again(first: Callable[[], Run], second: Callable[[], Run], way: str) -> Callable[[], Any]:
    """Return what gives which iterations the second run made, and whether it is the first's."""

    def act() -> Any:
        seen: list[int] = []
        with TemporaryDirectory() as folder:
            alone = look(start(rich_run() | first()))
            if way == "finished":
                start(rich_run() | first(), run_dir=folder)
            else:
                stop_halfway(rich_run() | first(), folder)
            model = start(rich_run() | second(), run_dir=folder, on_step=lambda step, _: seen.append(step))
        return {"visited": seen, **look(model)}, {"visited": seen, **alone}

    def told() -> Any:
        found, alone = act()
        left = [] if way == "finished" else list(range(max([1, *found["visited"][:1]]), STEPS))
        equal = all(torch.allclose(found[k], alone[k], atol=1e-5) for k in alone if k != "visited")
        return {"visited": found["visited"] == left, "equal": equal}

    return told


def known(
    name: str,
    first: Callable[[], Run],
    second: Callable[[], Run] | None = None,
    refusal: tuple[str, ...] = (),
) -> list[Case]:
    return [
        Case(
            f"identity: the same, {name}, {way}",
            again(first, second or first, way),
            lambda: {"visited": True, "equal": True},
            refusal,
        )
        for way in ("finished", "interrupted")
    ]


def named_sampler(name: str) -> Run:
    return {"sampler": ft.Named(name, limited(1.0))}


NAME = ("name",)
CASES = [
    *(case for name, change in MODELS.items() for case in differing(f"models' {name}", every_expert(change))),
    *(case for name, change in HEADS.items() for case in differing(f"heads' {name}", every_head(change))),
    *(case for name, change in MODELS.items() if name in ("buffer", "number", "hook", "function") for case in differing(
        f"one expert's {name}", lambda run, c=change: c(run["experts"]["cats"]))),
    *(case for name, change in HEADS.items() if name in ("number", "statistics", "weight") for case in differing(
        f"heads' {name} with a tinted block", every_head(change), layer="block:1")),
    *differing("experts exchanged", first_two_in_one),
    *differing("heads exchanged", exchange_heads),
    *differing("data exchanged", exchange_data, "finished interrupted cached"),
    *(case for row in (0, 1, 57, 198, 199) for case in differing(f"row {row} of the data", change_data(row), "finished interrupted cached")),
    *differing("one row by a trifle", change_data(57, 0.01), "finished interrupted cached"),
    *differing("one row more", lambda run: run["unlabeled"]["cats"].append(torch.ones(1, 5)), "finished interrupted cached"),
    *between("row 57 of a data set", data_of(TensorDataset), data_of(lambda x: TensorDataset(with_row(x, 57)))),
    *between("row 57 of a list of mappings", data_of(lambda x: [{"x": x}]), data_of(lambda x: [{"x": with_row(x, 57)}])),
    *between("row 57 of a generator", data_of(lambda x: iter([x])), data_of(lambda x: iter([with_row(x, 57)]))),
    *between("row 57 of arrays", data_of(lambda x: [x.numpy()]), data_of(lambda x: [with_row(x, 57).numpy()])),
    *between("data in another order", data_of(lambda x: [x]), data_of(lambda x: [x.flip(0)])),
    *(case for name, make in SAMPLERS.items() for case in between(f"sampler, {name}", lambda m=make: {"sampler": m(1.0)}, lambda m=make: {"sampler": m(0.4)})),
    *(case for name, make in OBJECTIVES.items() for case in between(f"objective, {name}", lambda m=make: {"objective": m(1.0)}, lambda m=make: {"objective": m(3.0)})),
    *between("objective named as ours", lambda: {"objective": "hard"}, lambda: {"objective": ft.Objective("hard", Tempered(2.0))}),
    *between("objective named as ours, the other way", lambda: {"objective": ft.Objective("hard", Tempered(2.0))}, lambda: {"objective": "hard"}),
    *between("sampler named as ours", lambda: {"sampler": "all"}, lambda: named_sampler("all")),
    *(case for name, one, two in (
        ("seed", 0, 1), ("lr", 0.01, 0.02), ("update", "sequential", "joint"), ("average", False, True), ("clamp", True, False),
        ("granularity", "layer", "task"), ("init", 0.3, 0.2), ("steps", 6, 7), ("batch_size", 40, 41), ("objective", "hard", "soft"),
        ("sampler", "all", "confidence_difference"), ("layer", "head", "block:1"), ("lr_tints", None, 0.001), ("lr_coefficients", None, 0.001),
        ("init", {"cats": 0.3, "dogs": 0.2}, {"cats": 0.2, "dogs": 0.3}), ("sampler", "top_confidence:0.5", "top_confidence:0.4"),
        ("task_vectors", {"dtype": "fp32"}, {"dtype": "fp16"}),
    ) for case in between(f"setting {name}", lambda n=name, o=one: {n: o}, lambda n=name, t=two: {n: t})),
    *known("once more", dict),
    *known("another place for task vectors", lambda: {"task_vectors": {"storage": "mmap"}}, dict),
    *known("task vectors in memory again", dict, lambda: {"task_vectors": {"storage": "mmap"}}),
    *known("another spelling of the layer", lambda: {"layer": "block:-1"}, lambda: {"layer": "blocks.1"}),
    *known("another spelling of a block", lambda: {"layer": "block:0"}, lambda: {"layer": "block:-2"}),
    *known("the start by task", lambda: {"init": 0.3}, lambda: {"init": {"cats": 0.3, "dogs": 0.3}}, ("init",)),
    *known("the start as a whole number", lambda: {"init": 1}, lambda: {"init": 1.0}),
    *known("the rate by part", lambda: {"lr": 0.01}, lambda: {"lr": 0.01, "lr_tints": 0.01}, ("lr_tints",)),
    *known("data as a loader", data_of(TensorDataset), data_of(lambda x: torch.utils.data.DataLoader(TensorDataset(x), 7))),
    *known("data as several batches", data_of(lambda x: [x]), data_of(lambda x: list(x.split(9)))),
    *known("models in evaluation mode", dict, lambda: {k: (v.eval() if isinstance(v, nn.Module) else {t: m.eval() for t, m in v.items()}) for k, v in rich_run().items() if k in ("pretrained", "experts", "heads")}),
    *known("models without gradients", dict, lambda: {"experts": {t: m.requires_grad_(False) for t, m in rich_run()["experts"].items()}}),
    *known("a progress bar", dict, lambda: {"progress": True}),
    *known("a named sampler", lambda: named_sampler("below one")),
    *known("a named objective", lambda: {"objective": ft.Objective("tempered 2", Tempered(2.0))}),
    *known("a sampler without a name", lambda: {"sampler": limited(1.0)}, None, NAME),
    *known("an objective without a name", lambda: {"objective": Tempered(2.0)}, None, NAME),
    *known("a chosen layer", lambda: {"layer": "auto"}),
    *known("copies of the models", dict, lambda: {k: copy.deepcopy(v) for k, v in rich_run().items() if k in ("pretrained", "experts", "heads")}),
]  # fmt: skip
