"""A batch is more than its first tensor."""

import itertools
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from .cases import Case
from .small import SAMPLES, TASKS, Pair, Plain, Tokens, ids, look, make, mask, tint, vectors

Data = Callable[[int], Any]
AMBIGUOUS = ("inputs=", "batch", "sample")
UNFIT = ("cats", "inputs", "sample", "batch", "tensor")


@cache
def right(kind: type[nn.Module]) -> dict[str, Any]:
    """Return the result for what nobody can misunderstand."""
    return result(kind, lambda place: [canonical(kind, place)])


def canonical(kind: type[nn.Module], place: int) -> Any:
    if kind is Tokens:
        return {"input_ids": ids(place), "attention_mask": mask(place)}
    if kind is Pair:
        return {"pixel_values": vectors(place), "input_ids": ids(place)}
    return vectors(place)


def result(kind: type[nn.Module], data: Data, **options: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    model = tint(make(kind), {task: data(place) for place, task in enumerate(TASKS)}, **options)
    return look(model, canonical(kind, 7))


def labels() -> Tensor:
    return torch.arange(SAMPLES) % 4


def given(
    name: str, kind: type[nn.Module], data: Data, refusal: tuple[str, ...] = (), ok: bool = True, **o: Any
) -> Case:
    """A case whose right result, if there is one, is that of the canonical form."""
    equal = (lambda: right(kind)) if ok else None
    return Case(f"batches: {name}", lambda: result(kind, data, **o), equal, refusal)


class Rows(Dataset[Any]):
    """A data set of what a function gives for a row."""

    def __init__(self, row: Callable[[int], Any], length: int = SAMPLES) -> None:
        self.row, self.length = row, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.row(index)


class Stream(IterableDataset[Any]):
    """Rows one after another."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class Sequence:
    """Looks like a list, and is none."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@dataclass
class Record:
    """A batch of a class of its own."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


Named = namedtuple("Named", "input_ids attention_mask")
Swapped = namedtuple("Swapped", "attention_mask input_ids")
Labeled = namedtuple("Labeled", "features label")


def tokens(place: int, **more: Any) -> dict[str, Any]:
    return {**canonical(Tokens, place), **more}


def token_rows(place: int, **more: Any) -> list[dict[str, Any]]:
    columns = tokens(place, **more)
    return [{name: column[row] for name, column in columns.items()} for row in range(SAMPLES)]


def hub(place: int, torch_format: bool = True, streaming: bool = False, **more: Any) -> Any:
    from datasets import Dataset as Hub

    columns = {name: np.asarray(column).tolist() for name, column in tokens(place, **more).items()}
    found = Hub.from_dict(columns)
    if streaming:
        found = found.to_iterable_dataset()
    return found.with_format("torch") if torch_format else found


def pictures(_: int) -> list:
    from PIL import Image

    return [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]


def ragged(_: int) -> Any:
    return Rows(lambda row: torch.ones(3 + row % 3))


def endless(place: int) -> Any:
    return itertools.repeat(vectors(place)[:4])


def exhausted(place: int) -> Any:
    found = iter([vectors(place)])
    list(found)
    return found


def noisy(place: int) -> Dataset[Any]:
    x = vectors(place)
    return Rows(lambda row: x[row] + torch.randn(5))


def noisy_tokens(place: int) -> Dataset[Any]:
    x, y = ids(place), mask(place)
    return Rows(lambda row: {"input_ids": x[row][torch.randperm(7)], "attention_mask": y[row]})


def padded_at_random(rows: list) -> Any:
    batch = default_collate(rows)
    return {**batch, "input_ids": batch["input_ids"].roll(int(torch.randint(7, ())), 1)}


def pair_rows(place: int) -> list[dict[str, Any]]:
    columns = canonical(Pair, place)
    return [{name: column[row] for name, column in columns.items()} for row in range(SAMPLES)]


CASES = [
    # Several tensors that all count.
    given("loader of ids, mask, labels", Tokens, lambda p: DataLoader(TensorDataset(ids(p), mask(p), labels()), 8)),
    given("loader of ids and mask", Tokens, lambda p: DataLoader(TensorDataset(ids(p), mask(p)), 8), AMBIGUOUS),
    given("data set of ids, mask, labels", Tokens, lambda p: TensorDataset(ids(p), mask(p), labels())),
    given("list of tuples", Tokens, lambda p: [(ids(p), mask(p), labels())]),
    given("list of lists", Tokens, lambda p: [[ids(p), mask(p), labels()]]),
    given("a mapping", Tokens, lambda p: [tokens(p)]),
    given("a mapping with labels", Tokens, lambda p: [tokens(p, labels=labels())]),
    given("a mapping with `label`", Tokens, lambda p: [tokens(p, label=labels())]),
    given("a mapping in another order", Tokens, lambda p: [dict(reversed(tokens(p).items()))]),
    given("a mapping with an index", Tokens, lambda p: [tokens(p, idx=labels())], ("idx",)),
    given("a mapping with token types", Tokens, lambda p: [tokens(p, token_type_ids=0 * ids(p))], ("token_type_ids",)),
    given("a mapping with texts", Tokens, lambda p: [tokens(p, text=["a"] * SAMPLES)], ("text",)),
    given("a UserDict", Tokens, lambda p: [UserDict(tokens(p))]),
    given("a named tuple", Tokens, lambda p: [Named(ids(p), mask(p))]),
    given("a named tuple in another order", Tokens, lambda p: [Swapped(mask(p), ids(p))], AMBIGUOUS),
    given("a dataclass", Tokens, lambda p: [Record(ids(p), mask(p), labels())], AMBIGUOUS),
    given("a loader of dicts", Tokens, lambda p: DataLoader(token_rows(p, labels=labels()), 8)),
    given("a loader of named tuples", Tokens, lambda p: DataLoader([Named(*r) for r in zip(ids(p), mask(p), strict=True)], 8)),
    given("a data set of dicts", Tokens, lambda p: Rows(token_rows(p, labels=labels()).__getitem__)),
    given("a stacked data set", Tokens, lambda p: StackDataset(**tokens(p))),
    given("a generator of dicts", Tokens, lambda p: (tokens(p) for _ in range(1))),
    given("a nested tuple", Tokens, lambda p: [((ids(p), mask(p)), labels())], AMBIGUOUS),
    given("a mapping within a tuple", Tokens, lambda p: [(tokens(p), labels())], AMBIGUOUS),
    given("a callable for the rest", Tokens, lambda p: [(mask(p), ids(p))], inputs=lambda b: {"input_ids": b[1], "attention_mask": b[0]}),
    given("batches of unlike lengths", Tokens, lambda p: [{k: v[:8] for k, v in tokens(p).items()}, {k: v[8:] for k, v in tokens(p).items()}]),
    given("rows of the hub", Tokens, lambda p: hub(p, labels=labels()), ("columns", "datasets", "row", "batch", "collate")),
    given("rows of the hub without a format", Tokens, lambda p: hub(p, False, labels=labels()), ("columns", "datasets", "format", "row", "list", "collate")),
    given("a stream of the hub", Tokens, lambda p: hub(p, streaming=True), ("columns", "datasets", "row", "stream", "list", "batch", "collate")),
    given("a loader of the hub", Tokens, lambda p: DataLoader(hub(p, labels=labels()), 8)),
    given("a dict of lists", Tokens, lambda p: {k: v.tolist() for k, v in tokens(p).items()}, UNFIT),
    given("a dict of tensors", Tokens, tokens, UNFIT),
    given("image and text", Pair, lambda p: [canonical(Pair, p)]),
    given("image and text, with labels", Pair, lambda p: [{**canonical(Pair, p), "labels": labels()}]),
    given("image and text, a loader", Pair, lambda p: DataLoader(pair_rows(p), 8)),
    given("image and text, a tuple", Pair, lambda p: [(vectors(p), ids(p))]),
    given("image and text, a tuple with labels", Pair, lambda p: DataLoader(TensorDataset(vectors(p), ids(p), labels()), 8)),
    given("image without text", Pair, lambda p: [vectors(p)], ("input_ids", "argument", "cats"), ok=False),
    given("image without text, a mapping", Pair, lambda p: [{"pixel_values": vectors(p)}], ("input_ids", "argument", "cats"), ok=False),
    given("image and another's text", Pair, lambda p: [{"pixel_values": vectors(p), "text": ids(p)}], ("input_ids", "text", "cats"), ok=False),
    # One tensor that counts.
    given("a tensor of rows", Plain, vectors, UNFIT),
    given("an array of rows", Plain, lambda p: vectors(p).numpy(), UNFIT),
    given("batches of arrays", Plain, lambda p: [vectors(p).numpy()], UNFIT),
    given("a list of rows", Plain, lambda p: list(vectors(p)), UNFIT),
    given("a list of lists of numbers", Plain, lambda p: vectors(p).tolist(), UNFIT),
    given("a tuple of batches", Plain, lambda p: tuple(vectors(p).split(8))),
    given("a set of batches", Plain, lambda p: {vectors(p)}),
    given("rows with labels", Plain, lambda p: TensorDataset(vectors(p), labels())),
    given("rows with labels and weights", Plain, lambda p: DataLoader(TensorDataset(vectors(p), labels(), torch.ones(SAMPLES)), 5)),
    given("a mapping of image and label", Plain, lambda p: [{"image": vectors(p), "label": labels()}]),
    given("a mapping of x and y", Plain, lambda p: [{"x": vectors(p), "y": labels()}], ("`y`", "y")),
    given("a mapping of unheard-of names", Plain, lambda p: [{"img": vectors(p), "lbl": labels()}], ("img", "lbl")),
    given("a mapping with the label first", Plain, lambda p: [{"lbl": labels().float(), "x": vectors(p)}], ("lbl",)),
    given("a tuple with the label first", Plain, lambda p: [(labels(), vectors(p))], UNFIT),
    given("an empty mapping", Plain, lambda p: [{}], UNFIT, ok=False),
    given("a mapping of labels alone", Plain, lambda p: [{"labels": labels()}], UNFIT, ok=False),
    given("a named tuple with a label", Plain, lambda p: [Labeled(vectors(p), labels())]),
    given("a loader of one row at a time", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), 1)),
    given("a loader without batches", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), batch_size=None), UNFIT),
    given("a loader of its own batches", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), batch_size=None, sampler=BatchSampler(SequentialSampler(range(SAMPLES)), 8, False)), UNFIT),
    given("a loader by batch sampler", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), batch_sampler=BatchSampler(SequentialSampler(range(SAMPLES)), 5, False)), UNFIT),
    given("a shuffled loader", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), 8, shuffle=True)),
    given("a loader of a subset", Plain, lambda p: DataLoader(TensorDataset(torch.cat([vectors(p), vectors(5)])), 8, sampler=SubsetRandomSampler(range(SAMPLES)))),
    given("a subset", Plain, lambda p: Subset(TensorDataset(torch.cat([vectors(5), vectors(p)])), range(SAMPLES, 2 * SAMPLES))),
    given("two data sets as one", Plain, lambda p: ConcatDataset([TensorDataset(vectors(p)[:9]), TensorDataset(vectors(p)[9:])])),
    given("a loader that collates itself", Plain, lambda p: DataLoader(TensorDataset(vectors(p)), 8, collate_fn=lambda rows: {"pixel_values": torch.stack([r[0] for r in rows]), "labels": None})),
    given("a loader with a collate of strings beside", Plain, lambda p: DataLoader(Rows(lambda i: (vectors(p)[i], f"row {i}")), 8)),
    given("a stream of batches", Plain, lambda p: Stream(vectors(p).split(8)), UNFIT),
    given("a loader of a stream", Plain, lambda p: DataLoader(Stream(list(vectors(p))), 8)),
    given("a sequence that is no list", Plain, lambda p: Sequence(list(vectors(p).split(8))), UNFIT),
    given("double precision", Plain, lambda p: [vectors(p).double()]),
    given("with gradients", Plain, lambda p: [vectors(p).requires_grad_()]),
    given("a view", Plain, lambda p: [vectors(p).T.contiguous().T]),
    given("a mask that is one tensor for all", Tokens, lambda p: [(ids(p), mask(p), torch.tensor(3))], AMBIGUOUS),
    # Whether the second tensor is a mask or a label, nobody can know.
    Case("batches: ids and labels, where a mask is optional", lambda: result(Tokens, lambda p: TensorDataset(ids(p), labels())),
         lambda: result(Tokens, lambda p: [{"input_ids": ids(p)}]), AMBIGUOUS),
    Case("batches: float features and float targets", lambda: result(Tokens, lambda p: [(ids(p), labels().float())]),
         lambda: result(Tokens, lambda p: [{"input_ids": ids(p)}]), AMBIGUOUS),
    # What cannot work.
    given("pictures", Plain, pictures, (*UNFIT, "PIL", "image"), ok=False),
    given("batches of pictures", Plain, lambda p: [pictures(p)], (*UNFIT, "PIL", "image"), ok=False),
    given("strings", Plain, lambda p: ["a text", "another"], (*UNFIT, "str", "text"), ok=False),
    given("batches of strings", Plain, lambda p: [["a text", "another"]], (*UNFIT, "str", "text"), ok=False),
    given("a path", Plain, lambda p: "data/train", (*UNFIT, "str", "path"), ok=False),
    given("nothing", Plain, lambda p: None, (*UNFIT, "None"), ok=False),
    given("a number", Plain, lambda p: 3, (*UNFIT, "int"), ok=False),
    given("an empty list", Plain, lambda p: [], ("empty", "no sample"), ok=False),
    given("an empty batch", Plain, lambda p: [torch.empty(0, 5)], ("empty", "no sample"), ok=False),
    given("a data set of unlike sizes", Plain, ragged, ("(3,)", "[3]", "3", "shape", "size"), ok=False),
    given("a loader of unlike sizes", Plain, lambda p: DataLoader(ragged(p), 8), ("(3,)", "[3]", "shape", "size"), ok=False),
    given("batches of unlike widths", Plain, lambda p: [torch.ones(4, 5), torch.ones(4, 6)], ("6", "shape", "size"), ok=False),
    given("an endless generator", Plain, endless, ("endless", "islice", "finite", "iterable", "limit"), ok=False),
    given("an endless stream", Plain, lambda p: DataLoader(Stream(itertools.repeat(vectors(p)[0])), 8), ("endless", "islice", "finite", "iterable", "limit"), ok=False),
    given("a generator that is used up", Plain, exhausted, ("empty", "no sample", "used"), ok=False),
    given("a data set that augments", Plain, noisy, ("twice", "random", "same", "differ"), ok=False),
    given("a loader that augments", Plain, lambda p: DataLoader(noisy(p), 8), ("twice", "random", "same", "differ"), ok=False),
    given("tokens that are shuffled", Tokens, noisy_tokens, ("twice", "random", "same", "differ"), ok=False),
    given("a collate that moves tokens", Tokens, lambda p: DataLoader(token_rows(p), 8, collate_fn=padded_at_random), ("twice", "random", "same", "differ"), ok=False),
    given("not a number", Plain, lambda p: [torch.full((9, 5), float("nan"))], ("finite", "nan", "NaN"), ok=False),
    given("infinities in one row", Plain, lambda p: [vectors(p).index_fill(0, torch.tensor(13), float("inf"))], ("finite", "nan", "NaN", "inf"), ok=False, batch_size=99),
    given("whole numbers for a float encoder", Plain, lambda p: [labels()[:, None].expand(-1, 5)], (*UNFIT, "dtype", "int64"), ok=False),
    given("a wrong width", Plain, lambda p: [torch.ones(4, 9)], ("9", "cats"), ok=False),
]  # fmt: skip


def tasks(change: Callable[[dict], dict]) -> Callable[[], Any]:
    return lambda: look(tint(make(), change({task: [vectors(place)] for place, task in enumerate(TASKS)})))


CASES += [
    Case("batches: a task without data", tasks(lambda d: {"cats": d["cats"]}), None, ("dogs",)),
    Case("batches: data of no task", tasks(lambda d: d | {"birds": d["cats"]}), None, ("birds",)),
    Case("batches: a list for all tasks", tasks(lambda d: list(d.values())), None, ("unlabeled", "task")),
    Case("batches: one loader for all tasks", tasks(lambda d: d["cats"]), None, ("unlabeled", "task")),
    Case("batches: one generator for two tasks",
         tasks(lambda d: dict.fromkeys(d, iter(d["cats"]))), None, ("dogs", "same", "empty", "generator")),
    Case("batches: the same list for two tasks",
         tasks(lambda d: dict.fromkeys(d, d["cats"])), lambda: tasks(lambda d: {t: list(d["cats"]) for t in d})()),
]  # fmt: skip
