"""Class distributions over a large vocabulary or at many positions, by no more than an objective reads.

`TopPredictions`: the top of a distribution and what remains,

    p(c) as it is for the k likeliest classes c;   (1 − Σ_top p) / (V − k) for each of the others

A language model's logits for all samples would take N · V · T numbers. This takes 2 · N · k · T.

`ClassIds`: the likeliest class alone, a byte where the logits of a segmentation take 4 · V.

Both give back logits (B, V, ...) of the batch at hand, so that objectives and samplers need not know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

TOP = 64
"""Classes kept of a distribution: k."""
MANY_CLASSES = 1024
"""Distributions over more classes than this are kept by their top. ImageNet's thousand stay whole; beyond,
the top takes an eighth of the memory or less."""
ARG_MAX = 0
"""Classes kept with their probabilities where an objective reads the arg-max alone: none, only the ids."""


@dataclass(frozen=True)
class _Compact:
    """What the compact kinds share: their `parts`, tensors of N rows, and the number of classes V."""

    parts: ClassVar[tuple[str, ...]]

    ids: Tensor
    classes: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` applied to every part."""
        return replace(self, **{part: change(getattr(self, part)) for part in self.parts})

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows: Tensor) -> Self:
        return self.map(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    @property
    def nbytes(self) -> int:
        """Memory of all parts."""
        return sum(getattr(self, part).nbytes for part in self.parts)

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors, for a file."""
        named = {part: getattr(self, part) for part in self.parts}
        return {**named, "classes": torch.tensor(self.classes)}

    @classmethod
    def from_tensors(cls, found: Mapping[str, Tensor]) -> Self:
        """From what `tensors` returned.

        Raises:
            ValueError: one is missing, of another shape, or holds no class or no log-probability.
        """
        if set(found) != {*cls.parts, "classes"}:
            raise ValueError(f"Expected the tensors {[*cls.parts, 'classes']}. Found {sorted(found)}.")
        parts, classes = [found[part] for part in cls.parts], int(found["classes"])
        ids = found["ids"]
        known = ids.numel() == 0 or (ids.min() >= 0 and ids.max() < classes)
        if not known or any(t.shape != ids.shape or not t.isfinite().all() for t in parts):
            raise ValueError(f"Its {', '.join(cls.parts)} do not fit each other or the {classes} classes.")
        return cls(**{part: found[part] for part in cls.parts}, classes=classes)


@dataclass(frozen=True)
class TopPredictions(_Compact):
    """What an expert predicts for N samples; stands for logits of shape (N, V, ...).

    Attributes:
        log_probs: of the k likeliest classes, likeliest first, shape (N, k, ...), float32.
        ids: which classes these are, shape (N, k, ...), int32.
        classes: V.
    """

    parts: ClassVar = ("log_probs", "ids")

    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int = TOP) -> "TopPredictions":
        """The top of logits (B, V, ...); nothing is lost where k ≥ V."""
        classes = logits.shape[1]
        top = logits.float().log_softmax(1).topk(min(k, classes), dim=1)
        return cls(top.indices.int(), classes, top.values)

    def logits(self) -> Tensor:
        """Normalised logits, log p, shape (N, V, ...), where the tensors are."""
        rest = 1 - self.log_probs.exp().sum(1, keepdim=True)
        # Rounding may leave nothing or less, and must not lift the others above the top.
        rest = rest.clamp(min=torch.finfo(rest.dtype).eps) / max(1, self.classes - self.ids.shape[1])
        shape = list(self.ids.shape)
        shape[1] = self.classes
        others = rest.log().minimum(self.log_probs[:, -1:]).expand(shape)
        return others.scatter(1, self.ids.long(), self.log_probs)


@dataclass(frozen=True)
class ClassIds(_Compact):
    """The arg-max of what an expert predicts for N samples; stands for logits of shape (N, V, ...) that are
    one there and zero elsewhere.

    Attributes:
        ids: the classes, shape (N, ...), of the smallest integer type that holds V.
        classes: V.
    """

    parts: ClassVar = ("ids",)

    @classmethod
    def of(cls, logits: Tensor) -> "ClassIds":
        """The arg-max of logits (B, V, ...)."""
        classes = logits.shape[1]
        types = (torch.uint8, torch.int16, torch.int32)
        smallest = next(dtype for dtype in types if classes - 1 <= torch.iinfo(dtype).max)
        return cls(logits.argmax(1).to(smallest), classes)

    def logits(self) -> Tensor:
        """One for the arg-max, else zero: float32, shape (N, V, ...), where the ids are."""
        ids = self.ids.long().unsqueeze(1)
        shape = (len(ids), self.classes, *ids.shape[2:])
        return torch.zeros(shape, device=ids.device).scatter_(1, ids, 1)


Predictions = Tensor | TopPredictions | ClassIds
"""What an expert predicts for N samples: the outputs themselves, or what is read of many numbers."""


def kept(output: Tensor, top: int | None) -> Predictions:
    """What to keep of a batch's outputs (B, V, ...).

    With `ARG_MAX` the class ids, where there are positions and classes; otherwise the `top` of more than
    `MANY_CLASSES`; all of anything else.
    """
    if top == ARG_MAX and output.ndim > 2 and output.shape[1] > 1:
        return ClassIds.of(output)
    many = output.ndim > 1 and output.shape[1] > MANY_CLASSES
    return TopPredictions.of(output, top) if many and top else output


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    names = parts[0].parts
    return replace(parts[0], **{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def mapped(predictions: Predictions, change: Callable[[Tensor], Tensor]) -> Predictions:
    """The predictions with `change` applied to the tensor, or tensors, that keep them."""
    return change(predictions) if isinstance(predictions, Tensor) else predictions.map(change)


def dense(predictions: Predictions) -> Tensor:
    """The outputs (B, ...) that they stand for."""
    return predictions if isinstance(predictions, Tensor) else predictions.logits()


def read(tensors: Mapping[str, Tensor], name: str) -> Predictions | None:
    """Predictions of any kind from named tensors; the outputs themselves are called `name`."""
    if "ids" not in tensors:
        return tensors.get(name)
    return (TopPredictions if "log_probs" in tensors else ClassIds).from_tensors(tensors)
