"""Compact storage of class distributions: only what an objective reads of them.

`TopPredictions`: the top of a distribution and what remains,

    p(c) as it is for the k likeliest classes c;   (1 − Σ_top p) / (V − k) for each of the others

A language model's logits for all samples would take N · V · T numbers. This takes 2 · N · k · T.

`ClassIds`: the likeliest class alone, a byte where the logits of a segmentation take 4 · V.

Both give back logits (B, V, ...) of the batch at hand, so that objectives and samplers need not know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fusion_tinting.method.objectives import Reads
from fusion_tinting.method.sampling import every_sample
from fusion_tinting.method.settings import Settings

TOP = 64
"""Classes kept of a distribution: k."""
MANY_CLASSES = 1024
"""Distributions over more classes than this are kept by their top. ImageNet's thousand stay whole; beyond,
the top takes an eighth of the memory or less."""
WHOLE_BYTES = 1 << 28
"""One distribution a sample is kept whole, of however many classes, where all fit in this much memory."""
ARG_MAX = 0
"""Classes kept with their probabilities where an objective reads the arg-max alone: none, only the ids."""


@dataclass(frozen=True)
class _Compact:
    """What the compact kinds share: their `parts`, tensors of N rows, and the number of classes V."""

    parts: ClassVar[tuple[str, ...]]

    ids: Tensor
    classes: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with every part changed.

        Args:
            change: what is done to each tensor.
        """
        changed: dict[str, Any] = {part: change(getattr(self, part)) for part in self.parts}
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Self:
        """Return the same on another device.

        Args:
            device: where to.
        """
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
        return sum(int(getattr(self, part).nbytes) for part in self.parts)

    def tensors(self) -> dict[str, Tensor]:
        """Return it as named tensors, for a file."""
        named = {part: getattr(self, part) for part in self.parts}
        return {**named, "classes": torch.tensor(self.classes)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Make it from what `tensors` returned.

        Args:
            tensors: by name.

        Raises:
            ValueError: one is missing, of another shape, or holds no class or no log-probability.
        """
        if set(tensors) != {*cls.parts, "classes"}:
            raise ValueError(f"Expected the tensors {[*cls.parts, 'classes']}. Found {sorted(tensors)}.")
        parts, classes = [tensors[part] for part in cls.parts], int(tensors["classes"])
        ids = tensors["ids"]
        known = ids.numel() == 0 or (ids.min() >= 0 and ids.max() < classes)
        if not known or any(t.shape != ids.shape or not t.isfinite().all() for t in parts):
            raise ValueError(f"Its {', '.join(cls.parts)} do not fit each other or the {classes} classes.")
        values: dict[str, Any] = {part: tensors[part] for part in cls.parts}
        return cls(**values, classes=classes)


@dataclass(frozen=True)
class TopPredictions(_Compact):
    """What an expert predicts for N samples; stands for logits of shape (N, V, ...).

    Attributes:
        log_probs: of the k likeliest classes, likeliest first, shape (N, k, ...), float32.
        ids: which classes these are, shape (N, k, ...), int32.
        classes: V.
    """

    parts: ClassVar[tuple[str, ...]] = ("log_probs", "ids")

    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int = TOP) -> "TopPredictions":
        """Return the top of a batch; nothing is lost where k ≥ V.

        Args:
            logits: (B, V, ...).
            k: how many classes.
        """
        classes = logits.shape[1]
        top = logits.float().log_softmax(1).topk(min(k, classes), dim=1)
        return cls(top.indices.int(), classes, top.values)

    def logits(self) -> Tensor:
        """Return normalized logits, log p, shape (N, V, ...), where the tensors are."""
        rest = 1 - self.log_probs.exp().sum(1, keepdim=True)
        # Rounding may leave nothing or less, and must not lift the others above the top.
        rest = rest.clamp(min=torch.finfo(rest.dtype).eps) / max(1, self.classes - self.ids.shape[1])
        shape = list(self.ids.shape)
        shape[1] = self.classes
        others = rest.log().minimum(self.log_probs[:, -1:]).expand(shape)
        return others.scatter(1, self.ids.long(), self.log_probs)


@dataclass(frozen=True)
class ClassIds(_Compact):
    """The arg-max of what an expert predicts for N samples.

    It stands for logits of shape (N, V, ...) that are one there and zero elsewhere.

    Attributes:
        ids: the classes, shape (N, ...), of the smallest integer type that holds V.
        classes: V.
    """

    parts: ClassVar[tuple[str, ...]] = ("ids",)

    @classmethod
    def of(cls, logits: Tensor) -> "ClassIds":
        """Return the arg-max of a batch.

        Args:
            logits: (B, V, ...).
        """
        classes = logits.shape[1]
        types = (torch.uint8, torch.int16, torch.int32)
        smallest = next(dtype for dtype in types if classes - 1 <= torch.iinfo(dtype).max)
        return cls(logits.argmax(1).to(smallest), classes)

    def logits(self) -> Tensor:
        """Return one for the arg-max, else zero: float32, shape (N, V, ...), where the ids are."""
        ids = self.ids.long().unsqueeze(1)
        shape = (len(ids), self.classes, *ids.shape[2:])
        return torch.zeros(shape, device=ids.device).scatter_(1, ids, 1)


Predictions = Tensor | TopPredictions | ClassIds
"""What an expert predicts for N samples: the outputs themselves, or a compact form."""


def classes_kept(settings: Settings, task: str) -> int | None:
    """Return how many classes of a distribution are read of a task's expert; None for all that it says.

    Args:
        settings: of the adaptation.
        task: its name.
    """
    reads = settings.objective_of(task).reads
    if reads is Reads.ARG_MAX and settings.sampler_of(task) is every_sample:
        return ARG_MAX
    return TOP if reads in (Reads.ARG_MAX, Reads.DISTRIBUTION) else None


def kept(output: Tensor, top: int | None, samples: int | None = None) -> Predictions:
    """Return what to keep of a batch's outputs.

    With `ARG_MAX` the class ids, where there are positions and classes; otherwise the `top` of more than
    `MANY_CLASSES`; all of anything else, and of what fits in `WHOLE_BYTES`.

    Args:
        output: (B, V, ...).
        top: as `classes_kept` gives it.
        samples: of the task, where all of them will be kept.
    """
    if samples is not None and output.ndim == 2 and output[0].nbytes * samples <= WHOLE_BYTES:
        return output
    if top == ARG_MAX and output.ndim > 2 and output.shape[1] > 1:
        return ClassIds.of(output)
    many = output.ndim > 1 and output.shape[1] > MANY_CLASSES
    return TopPredictions.of(output, top or TOP) if many and top is not None else output


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several batches as one.

    Args:
        parts: of one kind.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    tensors: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in first.parts}
    return replace(first, **tensors)


def mapped(predictions: Predictions, change: Callable[[Tensor], Tensor]) -> Predictions:
    """Return the predictions with the tensor, or tensors, that keep them changed.

    Args:
        predictions: of any kind.
        change: what is done to each tensor.
    """
    return change(predictions) if isinstance(predictions, Tensor) else predictions.map(change)


def dense(predictions: Predictions) -> Tensor:
    """Return the outputs (B, ...) that predictions stand for.

    Args:
        predictions: of any kind.
    """
    return predictions if isinstance(predictions, Tensor) else predictions.logits()


def read(tensors: Mapping[str, Tensor], name: str) -> Predictions | None:
    """Return predictions of any kind from named tensors; None where they are not there.

    Args:
        tensors: by name.
        name: what the outputs themselves are called.

    Raises:
        ValueError: tensors that do not fit each other.
    """
    if "ids" not in tensors:
        return tensors.get(name)
    if "log_probs" in tensors:
        return TopPredictions.from_tensors(tensors)
    return ClassIds.from_tensors(tensors)
