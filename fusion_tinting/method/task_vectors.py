"""The pre-trained model θ₀ and the task vectors τ_k = θ_k − θ₀, matched by name."""

import copy
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor, nn

from fusion_tinting.method.content import content_hash, value_hash
from fusion_tinting.method.matching import matched, merged_tensors
from fusion_tinting.method.models import PlainModels, plain_model

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

PRETRAININGS = ("same", "different")

UNRELATED = 0.1
"""Cosine between the weight matrices of an expert and of the pre-trained model, below which the one was not
fine-tuned from the other. Seen with tiny OpenCLIPs and RoBERTas: 0.96 and more after fine-tuning, 0.02 and
less between pre-trainings of other seeds. (Norms and biases are alike in all models: 0.4 to 0.7.) An expert
falls below it only by moving ten times the length of θ₀."""

PRETRAINED = "_pretrained_"
"""Key of θ₀ among the content hashes, beside the task names (FusionBench's own word for it)."""

PIECE = 1 << 16
"""Columns converted to float32 at a time: K times this stays in the processor's cache."""

Slots = dict[str, tuple[int, int, torch.Size]]
"""Tensor name -> (start, stop, shape) in a flat buffer."""


class Rows:
    """K rows of P numbers in memory; `fusion_tinting.run.storage` has other places for them.

    Args:
        count: K.
        width: P.
        dtype: float32, or a half-precision type that `pieces` converts to float32.
        device: where they are.

    Attributes:
        whole: the rows, or this process's columns of them.
        shared: whether the columns are shared out over processes.
    """

    shared = False

    def __init__(self, count: int, width: int, dtype: torch.dtype, device: torch.device):
        self.whole = torch.empty(count, width, dtype=dtype, device=device)

    def write(self, k: int, row: Tensor) -> None:
        """Set row `k`, converted to the rows' own dtype.

        Args:
            k: its place.
            row: shape (P,).
        """
        self.whole[k] = row

    def to(self, device: torch.device | str) -> "Rows":
        """Return the same rows on another device.

        Args:
            device: where to.
        """
        moved = copy.copy(self)
        moved.whole = self.whole.to(device)
        return moved

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (a, b, columns a to b as float32, shape (K, b - a)), from `start` to `stop`.

        Float32 rows are not copied and come in one piece; others in pieces, in a buffer that the next
        piece overwrites.

        Args:
            start: the first column.
            stop: the one after the last.
        """
        if self.whole.dtype == torch.float32:
            yield start, stop, self.whole[:, start:stop]
            return
        size = min(PIECE if self.whole.device.type == "cpu" else stop - start, stop - start)
        buffer = torch.empty(len(self.whole), size, device=self.whole.device, dtype=torch.float32)
        for a in range(start, stop, max(size, 1)):
            b = min(a + size, stop)
            yield a, b, buffer[:, : b - a].copy_(self.whole[:, a:b])

    def release(self) -> None:
        """Release cached pages of a file; nothing to do in memory."""

    def complete(self, flat: Tensor) -> None:
        """Make `flat` whole, of which `pieces` gave only what is here; nothing to do in memory.

        Args:
            flat: shape (P,).
        """

    def sum(self, start: int, part: Tensor) -> None:
        """Sum `part` over the processes that share the columns; nothing to do in memory.

        Args:
            start: its first column.
            part: shape (columns,).
        """

    def __deepcopy__(self, _: object) -> "Rows":
        return self  # never changed once written, and large


@dataclass(frozen=True)
class TaskVectors:
    """θ₀ and the K task vectors of L tensors, P numbers in all, in two flat buffers.

    The flat layout is what makes the merge fast: see `fusion_tinting.method.merging`.

    Attributes:
        tasks: the K task names; row k of `deltas` belongs to `tasks[k]`.
        slots: tensor name -> (start, stop, shape) in the flat buffers; L entries.
        base: θ₀, shape (P,), float32.
        scales: (L, K), powers of two, such that τ_k,l = scales[l, k] · deltas[k, slot of l]. All one in
            float32; in float16 each tensor's largest value is brought near the top of the range, so that
            small values keep their eleven bits: relative error of a tensor 2⁻¹¹ at most.
        hashes: sha256 of the merged tensors of θ₀ (key `_pretrained_`) and of every expert.
        rows: keeps `deltas` = τ / scale, shape (K, P), float32 or float16, in memory or elsewhere.
        dtypes: parameter or buffer of the pre-trained model -> its precision, where that is not float32.
        beside: hash of what θ₀ and every expert are beside their merged tensors; see `content.value_hash`.
    """

    tasks: list[str]
    slots: Slots
    base: Tensor
    scales: Tensor
    hashes: dict[str, str]
    rows: Rows
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_models(
        cls,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        *,
        dtype: str = "fp32",
        storage: type[Rows] = Rows,
        pretraining: str = "same",
    ) -> "TaskVectors":
        """Subtract `pretrained` from each expert, one expert at a time.

        `experts` may load on access: each is released before the next is asked for. A parameter that the
        experts share with the pre-trained model (the very same object) has no task vector and is not
        merged; nor are buffers, which must not differ. Precisions may: all is computed in float32.

        Args:
            pretrained: θ₀, an encoder.
            experts: task -> the encoder fine-tuned on it.
            dtype: `fp32`, or `fp16` with a power-of-two scale per tensor: half the memory.
            storage: where the rows are kept; see `Rows` and `fusion_tinting.run.storage.STORAGES`.
            pretraining: `same`, the experts were fine-tuned from `pretrained`; or `different`, they may
                have another origin, and `pretrained` is the anchor around which they are merged: the
                disjoint basins of arXiv 2412.19098, where plain merges fail.

        Raises:
            OSError: no room where `storage` keeps its rows.
            ValueError: no expert, or one that is no module or is the pre-trained model itself; models that
                cannot be merged, see `plain_model` and `matched`; a tensor that is not finite, named with
                its task; an expert of another pre-training, unless that is allowed; or what `storage`
                refuses.
        """
        pretrained, experts = plain_model("The pre-trained model", pretrained), _plain(experts)
        reference = merged_tensors(pretrained, *next(iter(experts.items())))
        slots = _slots(reference)
        base = _flatten(reference, slots, "the pre-trained model")
        rows = storage(len(experts), base.numel(), DTYPES[dtype], base.device)
        scales = base.new_ones(len(slots), len(experts))
        hashes = {PRETRAINED: content_hash(reference)}
        beside = {PRETRAINED: value_hash(pretrained, _parameters(pretrained, reference))}
        for k, task in enumerate(experts):
            expert = experts[task]
            tensors = matched(pretrained, task, expert, reference)
            row = _flatten(tensors, slots, f"the expert `{task}`").to(base.device).sub_(base)
            if pretraining == "same":
                _check_same_origin(task, base, row, slots)
            if dtype == "fp16":
                scales[:, k] = _scale_(row, slots)
            rows.write(k, row)
            hashes[task] = content_hash(tensors)
            beside[task] = value_hash(expert, [*_parameters(expert, tensors), *pretrained.parameters()])
            del expert, tensors, row  # before the next one is loaded
        return cls(list(experts), slots, base, scales, hashes, rows, _precisions(pretrained), beside)

    @property
    def deltas(self) -> Tensor:
        """τ / scale, shape (K, P); of `sharded` storage only this process's columns."""
        return self.rows.whole

    @property
    def names(self) -> list[str]:
        """The L tensor names, in order."""
        return list(self.slots)

    def to(self, device: torch.device | str) -> "TaskVectors":
        """Return the same task vectors on another device.

        Args:
            device: where to.
        """
        if self.base.device == torch.device(device):
            return self
        base, scales = self.base.to(device), self.scales.to(device)
        return replace(self, base=base, scales=scales, rows=self.rows.to(device))

    def pieces(self, names: Container[str] | None = None) -> Iterator[tuple[int, str, int, int, Tensor]]:
        """Yield (place, name, start, stop, `deltas[:, start:stop]` as float32) of tensor after tensor.

        Pieces are small where they have to be made; each is valid until the next.

        Args:
            names: these tensors only.
        """
        for place, (name, (start, stop, _)) in enumerate(self.slots.items()):
            if names is None or name in names:
                for a, b, deltas in self.rows.pieces(start, stop):
                    yield place, name, a, b, deltas
        self.rows.release()

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return `flat` cut into named tensors that share its memory.

        Args:
            flat: shape (..., P).
        """
        lead = flat.shape[:-1]
        return {
            name: flat[..., start:stop].view((*lead, *shape))
            for name, (start, stop, shape) in self.slots.items()
        }


def _plain(experts: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Return the experts as they are merged."""
    if not experts:
        raise ValueError("`experts` is empty: Model Tinting needs at least one expert.")
    if PRETRAINED in experts:
        raise ValueError(f"`{PRETRAINED}` is no task: it is the name of the pre-trained model.")
    return experts if isinstance(experts, PlainModels) else PlainModels("The expert", experts)


def _parameters(module: nn.Module, names: Iterable[str]) -> list[Tensor]:
    return [module.get_parameter(name) for name in names]


def _precisions(model: nn.Module) -> dict[str, torch.dtype]:
    tensors = chain(model.named_parameters(), model.named_buffers())
    return {n: t.dtype for n, t in tensors if t.is_floating_point() and t.dtype != torch.float32}


def _slots(tensors: Mapping[str, Tensor]) -> Slots:
    slots: Slots = {}
    start = 0
    for name, tensor in tensors.items():
        slots[name] = (start, start + tensor.numel(), tensor.shape)
        start += tensor.numel()
    return slots


def _flatten(tensors: Mapping[str, Tensor], slots: Slots, owner: str) -> Tensor:
    """Return named tensors as one float32 row, refusing any that is not finite."""
    stop = max(stop for _, stop, _ in slots.values())
    out = torch.empty(stop, device=next(iter(tensors.values())).device, dtype=torch.float32)
    for name, (start, stop, _) in slots.items():
        out[start:stop].copy_(tensors[name].reshape(-1))
    if not torch.isfinite(out).all():
        bad = [n for n, (a, b, _) in slots.items() if not torch.isfinite(out[a:b]).all()]
        raise ValueError(
            f"Tensor `{bad[0]}` of {owner} holds NaN or infinite values ({len(bad)} such "
            f"tensor(s) in all). Check that checkpoint: it cannot be merged."
        )
    return out


def _scale_(row: Tensor, slots: Slots) -> Tensor:
    """Divide each tensor of `row`, in place, by a power of two; return the L powers.

    The largest value of each comes to lie between 2¹⁴ and 2¹⁵.
    """
    largest = torch.stack(
        [row[a:b].abs().max() if b > a else row.new_zeros(()) for a, b, _ in slots.values()]
    )
    exponent = torch.frexp(largest).exponent - 15
    powers = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent.clamp(min=-126)), 1.0)
    for power, (a, b, _) in zip(powers, slots.values(), strict=True):
        row[a:b] /= power
    return powers


def _check_same_origin(task: str, base: Tensor, delta: Tensor, slots: Slots) -> None:
    matrices = [(base[a:b], delta[a:b]) for a, b, shape in slots.values() if len(shape) > 1]
    square = sum(float(own.dot(own)) for own, _ in matrices)
    along = sum(float(own.dot(tau)) for own, tau in matrices)
    moved = sum(float(tau.dot(tau)) for _, tau in matrices)
    norms = (square * (square + 2 * along + moved)) ** 0.5  # ‖θ₀‖ ‖θ₀ + τ‖
    cosine = (square + along) / norms if norms else 1.0
    if cosine < UNRELATED:
        raise ValueError(
            f"The expert `{task}` was not fine-tuned from this pre-trained model: the cosine between their "
            f"weight matrices is {cosine:.2f}, where fine-tuning leaves more than 0.9. Give the "
            "pre-trained model of the experts; or, to merge experts of different pre-training around this "
            "one, set `task_vectors.pretraining=different`."
        )
