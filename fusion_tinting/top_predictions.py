"""Class distributions over a large vocabulary, kept by their top and what remains.

    p(c) as it is for the k likeliest classes c;   (1 − Σ_top p) / (V − k) for each of the others

A language model's logits for all samples would take N · V · T numbers. This takes 2 · N · k · T, and gives
back logits (B, V, T) of the batch at hand, so that objectives and samplers need not know of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOP = 64
"""Classes kept of a distribution: k."""
MANY_CLASSES = 1024
"""Distributions over more classes than this are kept by their top. ImageNet's thousand stay whole; beyond,
the top takes an eighth of the memory or less."""


@dataclass(frozen=True)
class TopPredictions:
    """What an expert predicts for N samples; stands for logits of shape (N, V, ...).

    Attributes:
        log_probs: of the k likeliest classes, likeliest first, shape (N, k, ...), float32.
        ids: which classes these are, shape (N, k, ...), int32.
        classes: V.
    """

    log_probs: Tensor
    ids: Tensor
    classes: int

    @classmethod
    def of(cls, logits: Tensor, k: int = TOP) -> "TopPredictions":
        """The top of logits (B, V, ...); nothing is lost where k ≥ V."""
        classes = logits.shape[1]
        top = logits.float().log_softmax(1).topk(min(k, classes), dim=1)
        return cls(top.values, top.indices.int(), classes)

    def logits(self) -> Tensor:
        """Normalised logits, log p, shape (N, V, ...), where the tensors are."""
        rest = 1 - self.log_probs.exp().sum(1, keepdim=True)
        # Rounding may leave nothing or less, and must not lift the others above the top.
        rest = rest.clamp(min=torch.finfo(rest.dtype).eps) / max(1, self.classes - self.ids.shape[1])
        shape = list(self.ids.shape)
        shape[1] = self.classes
        others = rest.log().minimum(self.log_probs[:, -1:]).expand(shape)
        return others.scatter(1, self.ids.long(), self.log_probs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "TopPredictions":
        """The same with `change` applied to both tensors."""
        return replace(self, log_probs=change(self.log_probs), ids=change(self.ids))

    def to(self, device: torch.device | str) -> "TopPredictions":
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self, rows: Tensor) -> "TopPredictions":
        return self.map(lambda tensor: tensor[rows])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    @property
    def nbytes(self) -> int:
        """Memory of both tensors."""
        return self.log_probs.nbytes + self.ids.nbytes

    def tensors(self) -> dict[str, Tensor]:
        """As named tensors, for a file."""
        return {"log_probs": self.log_probs, "ids": self.ids, "classes": torch.tensor(self.classes)}

    @classmethod
    def from_tensors(cls, found: Mapping[str, Tensor]) -> "TopPredictions":
        """From what `tensors` returned.

        Raises:
            ValueError: one is missing, of another shape, or holds no class or no log-probability.
        """
        if set(found) != {"log_probs", "ids", "classes"}:
            raise ValueError(f"Expected the tensors log_probs, ids and classes. Found {sorted(found)}.")
        log_probs, ids, classes = found["log_probs"], found["ids"], int(found["classes"])
        known = ids.numel() == 0 or (ids.min() >= 0 and ids.max() < classes)
        if log_probs.shape != ids.shape or not known or not log_probs.isfinite().all():
            raise ValueError(f"Its log_probs and ids do not fit each other or the {classes} classes.")
        return cls(log_probs, ids, classes)


Predictions = Tensor | TopPredictions
"""What an expert predicts for N samples: the outputs themselves, or the top of many classes."""


def kept(output: Tensor, top: int | None) -> Predictions:
    """What to keep of a batch's outputs: the `top` of more than `MANY_CLASSES`; all of anything else."""
    many = output.ndim > 1 and output.shape[1] > MANY_CLASSES
    return TopPredictions.of(output, top) if many and top is not None else output


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several batches as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    log_probs = torch.cat([part.log_probs for part in parts])
    return TopPredictions(log_probs, torch.cat([part.ids for part in parts]), parts[0].classes)


def mapped(predictions: Predictions, change: Callable[[Tensor], Tensor]) -> Predictions:
    """The predictions with `change` applied to the tensor, or tensors, that keep them."""
    return change(predictions) if isinstance(predictions, Tensor) else predictions.map(change)


def dense(predictions: Predictions) -> Tensor:
    """The outputs (B, ...) that they stand for."""
    return predictions if isinstance(predictions, Tensor) else predictions.logits()
