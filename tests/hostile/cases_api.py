"""Encoders with habits, mappings that load, and the smaller public functions."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import fusion_tinting as ft

from .cases import Case
from .small import TASKS, Plain, Tokens, ids, look, make, mask, plain_data, tint, vectors

HABIT = ("encoder", "cats", "place", "input", "output", "attribute")


class InPlace(Plain):
    """Changes its inputs in place, and gives what `Plain` gives of them doubled."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Doubling(Plain):
    """The same without changing them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class Remembering(Plain):
    """Keeps what it computed last."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        self.seen = [*getattr(self, "seen", [])[-2:], self.last]
        return self.last


class Growing(Plain):
    """Counts in a buffer what it has seen, and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x) * (1 + 0.1 * self.count)


class Counting(Growing):
    """Counts, and does not read it."""

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return Plain.forward(self, x)


class Caching(Plain):
    """Gives what it gave for the first sample once more."""

    def forward(self, x: Tensor) -> Tensor:
        key = float(x[0, 0])
        self.kept = getattr(self, "kept", {})
        if key not in self.kept:
            self.kept[key] = super().forward(x)
        return self.kept[key]


class Keyword(Plain):
    """Has settings behind its input."""

    def forward(self, x: Tensor, *, scale: float = 1.0, **more: Any) -> Tensor:
        return super().forward(x) * scale


class Optional(Plain):
    """Its second argument is a scale, and no label."""

    def forward(self, x: Tensor, scale: Tensor | None = None, return_dict: bool = True) -> Tensor:
        return super().forward(x) * (1 if scale is None else scale)


class WantsLabels(Plain):
    """Takes labels, as models of transformers do, and adds them to its output."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(x) + (0 if labels is None else labels[:, None])


class InPlaceHead(nn.Module):
    """Changes the features in place."""

    def __init__(self, place: bool = True) -> None:
        super().__init__()
        self.layer, self.place = nn.Linear(6, 4), place

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mul_(2) if self.place else x * 2)


class Loading(Mapping[str, nn.Module]):
    """Loads on access, each time anew."""

    def __init__(
        self, items: Mapping[str, nn.Module], change: Callable[[nn.Module, int], Any] | None = None
    ) -> None:
        self.items_, self.change, self.calls = dict(items), change, 0

    def __getitem__(self, key: str) -> nn.Module:
        import copy

        self.calls += 1
        found = copy.deepcopy(self.items_[key])
        if self.change is not None:
            found = self.change(found, self.calls) or found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


def kind(model: type[nn.Module], **options: Any) -> Callable[[], Any]:
    return lambda: look(tint(make(model), plain_data(), **options))


def twice(model: type[nn.Module], **options: Any) -> Callable[[], Any]:
    """Return what looks at a result after it was used, copied and merged again."""

    def act() -> Any:
        import copy

        found = tint(make(model), plain_data(), **options)
        with torch.no_grad():
            found(vectors(3), "cats")
        copy.deepcopy(found)
        return look(found) | {"again": look_plain(found.remerged("dogs"))}

    return act


def look_plain(model: ft.TintedModel) -> Tensor:
    with torch.no_grad():
        return model(vectors(7), "dogs")


def plain_heads(place: bool) -> dict[str, Any]:
    models = make()
    torch.manual_seed(8)
    models["heads"] = {task: InPlaceHead(place) for task in TASKS}
    return models


def with_mapping(change: Callable[[dict], Any], **options: Any) -> Callable[[], Any]:
    def act() -> Any:
        models = make()
        change(models)
        return look(tint(models, plain_data(), **options))

    return act


def lost(model: nn.Module, calls: int) -> Any:
    return model if calls < 3 else "gone"


def shuffled_orders() -> Any:
    models = make()
    models["heads"] = OrderedDict(reversed(models["heads"].items()))
    return look(tint(models, dict(reversed(plain_data().items()))))


def data(
    make_one: Callable[[int], Any], model: type[nn.Module] = Plain, **options: Any
) -> Callable[[], Any]:
    return lambda: look(tint(make(model), {t: make_one(p) for p, t in enumerate(TASKS)}, **options))


def tokens(make_one: Callable[[int], Any], **options: Any) -> Callable[[], Any]:
    probe = {"input_ids": ids(7), "attention_mask": mask(7)}
    return lambda: look(tint(make(Tokens), {t: make_one(p) for p, t in enumerate(TASKS)}, **options), probe)


def vectors_of() -> tuple[ft.TaskVectors, Tensor]:
    models = make()
    found = ft.TaskVectors.from_models(models["pretrained"], models["experts"])
    return found, torch.rand(len(found.slots), 2, generator=torch.Generator().manual_seed(3))


def merged(shape: Callable[[Tensor], Any], by: Callable[..., Any] = ft.merge) -> Callable[[], Any]:
    def act() -> Any:
        found, lam = vectors_of()
        return by(found, shape(lam))

    return act


def remerged(lam: Callable[[Any], Any]) -> Callable[[], Any]:
    def act() -> Any:
        model = tint(make(), plain_data())
        return look_plain(model.remerged(lam(model)))

    return act


def stored(change: Callable[[Path, ft.TintedModel], Any]) -> Callable[[], Any]:
    def act() -> Any:
        with TemporaryDirectory() as folder:
            return change(Path(folder), tint(make(), plain_data(), run_dir=folder))

    return act


def two_levels(_: Any = None) -> Any:
    """The result of a run is the base of another."""
    first = tint(make(), plain_data(), layer=None)
    models = make()
    return look(tint({**models, "pretrained": first.merged}, plain_data()))


def two_levels_apart() -> Any:
    import copy

    first = tint(make(), plain_data(), layer=None)
    plain = Plain()
    plain.load_state_dict({k: v.clone() for k, v in first.merged.state_dict().items()})
    return look(tint({**make(), "pretrained": copy.deepcopy(plain)}, plain_data()))


LAM = ("lam", "λ", "shape", "coefficients")
CASES = [
    *(Case(f"habits: an encoder that changes its inputs, {u}, {la}", kind(InPlace, update=u, layer=la), kind(Doubling, update=u, layer=la), HABIT)
      for u in ("sequential", "joint") for la in ("head", "block:1")),
    *(Case(f"habits: heads that change the features, {u}", lambda u=u: look(tint(plain_heads(True), plain_data(), update=u)),
           lambda u=u: look(tint(plain_heads(False), plain_data(), update=u)), ("head", *HABIT)) for u in ("sequential", "joint")),
    *(Case(f"habits: an encoder that remembers, {la}", twice(Remembering, layer=la), twice(Plain, layer=la), HABIT) for la in ("head", "block:1", "auto")),
    Case("habits: an encoder that reads how often it was called", kind(Growing), None, ("same", "twice", "call", "count", "random", "buffer")),
    Case("habits: an encoder that counts in a buffer", kind(Counting), kind(Plain), ("count", "buffer")),
    Case("habits: an encoder that caches", kind(Caching), None, ("same", "twice", "batch", "gradient", "cache", *HABIT)),
    Case("habits: settings behind the input", kind(Keyword), kind(Plain)),
    Case("habits: settings behind the input, a mapping", data(lambda p: [{"x": vectors(p), "labels": torch.arange(24)}], Keyword), kind(Plain)),
    Case("habits: settings behind the input, a tuple", data(lambda p: [(vectors(p), torch.arange(24))], Keyword), kind(Plain), ("inputs=",)),
    Case("habits: a scale or a label", data(lambda p: [(vectors(p), torch.arange(24.0)[:, None])], Optional), kind(Plain), ("inputs=",)),
    Case("habits: labels that the encoder would take, a mapping", data(lambda p: [{"x": vectors(p), "labels": torch.arange(24)}], WantsLabels), kind(Plain), ("labels",)),
    Case("habits: labels that the encoder would take, a tuple", data(lambda p: [(vectors(p), torch.arange(24))], WantsLabels), kind(Plain), ("labels", "inputs=")),
    Case("inputs=: a mapping", tokens(lambda p: [(mask(p), ids(p))], inputs=lambda b: {"attention_mask": b[0], "input_ids": b[1]}), tokens(lambda p: [{"input_ids": ids(p), "attention_mask": mask(p)}])),
    Case("inputs=: a tuple", tokens(lambda p: [(mask(p), ids(p))], inputs=lambda b: (b[1], b[0])), tokens(lambda p: [{"input_ids": ids(p), "attention_mask": mask(p)}])),
    Case("inputs=: one of them", tokens(lambda p: [(mask(p), ids(p))], inputs=lambda b: b[1]), tokens(lambda p: [{"input_ids": ids(p)}])),
    Case("inputs=: nothing", data(lambda p: [vectors(p)], inputs=lambda b: None), None, ("inputs", "None")),
    Case("inputs=: no function", data(lambda p: [vectors(p)], inputs="x"), None, ("inputs",)),
    Case("inputs=: raises", data(lambda p: [vectors(p)], inputs=lambda b: b["x"]), None, ("inputs", "cats")),
    Case("inputs=: names that the encoder has not", data(lambda p: [vectors(p)], inputs=lambda b: {"y": b}), None, ("`y`", "y", "inputs")),
    Case("mappings: experts that are loaded", with_mapping(lambda m: m.update(experts=Loading(m["experts"]))), kind(Plain)),
    Case("mappings: experts that are loaded, a tinted block", with_mapping(lambda m: m.update(experts=Loading(m["experts"])), layer="block:1"), kind(Plain, layer="block:1")),
    Case("mappings: heads that are loaded", with_mapping(lambda m: m.update(heads=Loading(m["heads"]))), kind(Plain)),
    Case("mappings: an expert that is gone", with_mapping(lambda m: m.update(experts=Loading(m["experts"], lost)), layer="block:1"), None, ("expert", "module")),
    Case("mappings: other orders", shuffled_orders, kind(Plain)),
    Case("api: a run upon a run", two_levels, two_levels_apart),
    Case("api: merge with λ for each task", merged(lambda lam: lam[0]), merged(lambda lam: lam[0].expand_as(lam)), LAM),
    Case("api: merge with λ of one number", merged(lambda lam: lam[0, 0]), merged(lambda lam: lam[0, 0].expand_as(lam)), LAM),
    Case("api: merge with a column", merged(lambda lam: lam[:, :1]), merged(lambda lam: lam[:, :1].expand_as(lam)), LAM),
    Case("api: merge with λ transposed", merged(lambda lam: lam.T), None, LAM),
    Case("api: merge with a row too many", merged(lambda lam: torch.cat([lam, lam[:1]])), None, LAM),
    Case("api: merge with a row too few", merged(lambda lam: lam[:-1]), None, LAM),
    Case("api: merge with λ of double precision", merged(lambda lam: lam.double()), merged(lambda lam: lam), LAM),
    Case("api: reference with λ transposed", merged(lambda lam: lam.T, ft.merge_reference), None, LAM),
    Case("api: reference with a row too many", merged(lambda lam: torch.cat([lam, lam[:1]]), ft.merge_reference), None, LAM),
    Case("api: merge_tensor of another shape", lambda: ft.merge_tensor(torch.ones(2, 3), [torch.ones(3, 2) * 5], [0.3]), None, ("shape", "(3, 2)")),
    Case("api: merge_tensor of more numbers", lambda: ft.merge_tensor(torch.ones(4), [torch.ones(9)], [0.3]), None, ("shape", "(9,)")),
    Case("api: merge_tensor of one number", lambda: ft.merge_tensor(torch.ones(4), [torch.ones(1)], [0.3]), None, ("shape", "(1,)")),
    Case("api: merge_tensor with too few λ", lambda: ft.merge_tensor(torch.ones(2), [torch.ones(2)] * 2, [0.3]), None, ("λ", "lam", "expert", "zip")),
    Case("api: merge_tensor of whole numbers", lambda: ft.merge_tensor(torch.ones(2, dtype=torch.long), [torch.ones(2, dtype=torch.long) * 3], [0.5]).tolist(), lambda: [2.0, 2.0], ("float",)),
    Case("api: merge_tensor of whole numbers over floats", lambda: ft.merge_tensor(torch.ones(2), [torch.ones(2, dtype=torch.long) * 3], [0.5]), lambda: torch.tensor([2.0, 2.0]), ("float",)),
    Case("api: remerged by a task", remerged(lambda m: "dogs"), remerged(lambda m: [0.0, 1.0]), LAM),
    Case("api: remerged by an unknown task", remerged(lambda m: "birds"), None, ("birds",)),
    Case("api: remerged with λ of three tasks", remerged(lambda m: [0.1, 0.2, 0.3]), None, LAM),
    Case("api: remerged with not a number", remerged(lambda m: float("nan")), None, (*LAM, "finite")),
    Case("api: remerged with its own λ", remerged(lambda m: torch.stack(list(m.coefficients.values()))), lambda: own_lambda(), LAM),
    Case("api: agreement of unlike shapes", lambda: ft.agreement(torch.ones(3, 4), torch.ones(1, 4)), None, ("shape",)),
    Case("api: agreement of unlike classes", lambda: ft.agreement(torch.rand(3, 4), torch.rand(3, 5)), None, ("shape",)),
    Case("api: Unlabeled of a place that is not there", lambda: ft.Unlabeled.of([vectors()]).subset([999]), None, ("999",)),
    Case("api: Unlabeled of a place below zero", lambda: len(ft.Unlabeled.of([vectors()]).subset([-1])), lambda: 1, ("-1",)),
    Case("api: settings of another kind", lambda: ft.Settings(steps=None), None, ("steps",)),
    Case("api: load with another class's models", stored(lambda f, m: look(ft.TintedModel.load(f, **make(Tokens)))), None, ("pre-trained", "expert")),
    Case("api: load with tensor names that are none", stored(lambda f, m: look(ft.TintedModel.load(f, **make(), tensor_names={"stem.weight": "x"}))), None, ("x", "coefficients", "tensor_names")),
    Case("api: load a file", stored(lambda f, m: look(ft.TintedModel.load(f / "tinting.json", **make()))), None, ("tinting.json",)),
    Case("api: load with models that were in half precision", stored(lambda f, m: look(ft.TintedModel.load(f, **_half(make())))), None, ("pre-trained", "another")),
]  # fmt: skip


def _half(models: dict[str, Any]) -> dict[str, Any]:
    models["pretrained"].half()
    return models


def own_lambda() -> Tensor:
    """The shared encoder with the head that the task came with."""
    with torch.no_grad():
        return make()["heads"]["dogs"](tint(make(), plain_data()).merged(vectors(7)))
