"""The pre-trained model θ₀ and the task vectors τ_k = θ_k − θ₀, matched by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusion_tinting.method.content import content_hash, value_hash
from fusion_tinting.method.matching import matched, merged_tensors
from fusion_tinting.method.models import PlainModels, plain_model, released
from fusion_tinting.method.rows import Rows, Slots, slots_of
from fusion_tinting.method.tensors import Converted, Tensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

PRETRAININGS = ("same", "different")
GRADIENTS = ("auto", "whole", "arriving")
"""When ∂θ is contracted to ∂λ; see `fusion_tinting.method.merging.MergedWeights`."""

UNRELATED = 0.1
"""Cosine between the weight matrices of an expert and of the pre-trained model, below which the one was not
fine-tuned from the other. Seen with tiny OpenCLIPs and RoBERTas: 0.96 and more after fine-tuning, 0.02 and
less between pre-trainings of other seeds. (Norms and biases are alike in all models: 0.4 to 0.7.) An expert
falls below it only by moving ten times the length of θ₀."""

PRETRAINED = "_pretrained_"
"""Key of θ₀ among the content hashes, beside the task names (FusionBench's own word for it)."""

GATHERED, LARGE = 1 << 18, 2 << 20
"""See `TaskVectors.lean`: the fewer, the less is held, and the more pages are taken anew in every step."""

FINITE = 1 << 24
"""Numbers that are looked at at a time, whether they are finite."""

Files = Mapping[str, Mapping[str, Tensor]]
"""Task, or `_pretrained_` -> tensor name -> tensor in a file."""
Part = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A model's tensors -> those rows of them that a process keeps; see `shards.OwnRows`."""


class Piece(NamedTuple):
    """A piece of a merged tensor, of θ₀ and of all task vectors, in float32.

    Attributes:
        place: of the tensor among the L.
        name: of the tensor.
        start: where the piece begins in the tensor, laid flat.
        stop: where it ends.
        base: θ₀, shape (stop - start,).
        deltas: the task vectors over their scales, shape (K, stop - start).
    """

    place: int
    name: str
    start: int
    stop: int
    base: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class TaskVectors:
    """θ₀ and the K task vectors of L tensors, P numbers in all.

    Small models keep them in two flat buffers (`Rows`), which makes the merge fast; models of half
    precision, and models whose files are read, keep them tensor by tensor (`Tensors`).

    Attributes:
        tasks: the K task names.
        slots: tensor name -> (start, stop, shape) in a flat buffer; L entries.
        hashes: sha256 of the merged tensors of θ₀ (key `_pretrained_`) and of every expert.
        kept: where θ₀ and τ are.
        dtypes: parameter or buffer of the pre-trained model -> its precision, where that is not float32.
        unlike: tasks whose expert is of another precision than θ₀.
        beside: hash of what θ₀ and every expert are beside their merged tensors; see `content.value_hash`.
    """

    tasks: list[str]
    slots: Slots
    hashes: dict[str, str]
    kept: Rows | Tensors
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    unlike: frozenset[str] = frozenset()
    beside: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_models(
        cls,
        pretrained: nn.Module,
        experts: Mapping[str, nn.Module],
        *,
        dtype: str = "fp32",
        storage: type[Rows] | type[Tensors] = Rows,
        files: Files | None = None,
        part: Part | None = None,
        pretraining: str = "same",
    ) -> "TaskVectors":
        """Subtract `pretrained` from each expert, one expert at a time.

        `experts` may load on access: each is released before the next is asked for. A parameter that the
        experts share with the pre-trained model (the very same object) has no task vector and is not
        merged; nor are buffers, which must not differ. Precisions may: sums are taken in float32.

        Args:
            pretrained: θ₀, an encoder.
            experts: task -> the encoder fine-tuned on it.
            dtype: `fp32`, or `fp16` with a power-of-two scale per tensor: half the memory of a float32
                model. Models of half precision take half of it with `fp32` already.
            storage: what keeps them: `Rows`, which leaves models of half precision to `Tensors`, or
                another of `fusion_tinting.run.storage.STORAGES`.
            files: task, or `_pretrained_` -> tensor name -> tensor, read when it is needed; then nothing is
                kept.
            part: where several processes share the models, what this one keeps of each; `storage` is a kind
                of `Tensors` then.
            pretraining: `same`, the experts were fine-tuned from `pretrained`; or `different`, they may
                have another origin, and `pretrained` is the anchor around which they are merged: the
                disjoint basins of arXiv 2412.19098, where plain merges fail.

        Raises:
            OSError: no room where `storage` keeps its rows.
            ValueError: no expert, or one that is no module or is the pre-trained model itself; models that
                cannot be merged, see `plain_model` and `matched`; a tensor that is not finite, named with
                its task; an expert of another pre-training, unless that is allowed; files that hold other
                tensors than the models; or what `storage` refuses.
        """
        pretrained, experts = plain_model("The pre-trained model", pretrained), _plain(experts)
        expert: nn.Module | None = next(iter(experts.values()))
        assert expert is not None
        reference = merged_tensors(pretrained, next(iter(experts)), expert)
        _check(PRETRAINED, reference, files)
        kept = _place(reference, len(experts), dtype, storage, files, part)
        hashes = {PRETRAINED: content_hash(reference)}
        beside = {PRETRAINED: value_hash(pretrained, _parameters(pretrained, reference))}
        unlike: set[str] = set()
        for k, task in enumerate(experts):
            expert = experts[task] if expert is None else expert  # the first one is here
            tensors = matched(pretrained, task, expert, reference)
            _check(task, tensors, files)
            if pretraining == "same":
                _check_same_origin(task, reference, tensors)
            native = isinstance(kept, Tensors)
            kept.add(k, _own(tensors, task, files, part, released(expert)) if native else tensors)
            hashes[task] = content_hash(tensors)
            unlike |= {task for name, own in reference.items() if tensors[name].dtype != own.dtype}
            beside[task] = value_hash(expert, [*_parameters(expert, tensors), *pretrained.parameters()])
            del tensors  # before the next one is loaded
            expert = None
        dtypes, tasks = _precisions(pretrained), list(experts)
        return cls(tasks, slots_of(reference), hashes, kept, dtypes, frozenset(unlike), beside)

    @property
    def base(self) -> Tensor:
        """θ₀ in a flat buffer, shape (P,), float32; of `Rows` alone."""
        return self._rows.base

    @property
    def deltas(self) -> Tensor:
        """τ / scale, shape (K, P); of `Rows` alone."""
        return self._rows.whole

    @property
    def scales(self) -> Tensor:
        """What the rows are multiplied with, shape (L, K); see `Rows`."""
        if isinstance(self.kept, Rows):
            return self.kept.scales
        return torch.ones(len(self.slots), len(self.tasks), device=self.device, dtype=torch.float32)

    @property
    def _rows(self) -> Rows:
        if not isinstance(self.kept, Rows):
            raise ValueError("These task vectors are kept tensor by tensor, and not in flat buffers.")
        return self.kept

    @property
    def names(self) -> list[str]:
        """The L tensor names, in order."""
        return list(self.slots)

    @property
    def size(self) -> int:
        """P, how many numbers are merged."""
        return max(stop for _, stop, _ in self.slots.values())

    @property
    def lean(self) -> int:
        """Bytes from which freed memory is worth the time that it takes to get it again; 0 for none.

        Those who share a model gather and free all of it in every pass.
        """
        return 0 if not self.apart else GATHERED if self.kept.shared else LARGE

    @property
    def apart(self) -> bool:
        """Whether they are kept tensor by tensor, as those of large models are."""
        return isinstance(self.kept, Tensors)

    @property
    def device(self) -> torch.device:
        """Where merged tensors come from."""
        return self.kept.device

    def to(self, device: torch.device | str) -> "TaskVectors":
        """Return the same task vectors on another device.

        Args:
            device: where to.
        """
        return self if self.device == torch.device(device) else replace(self, kept=self.kept.to(device))

    def pieces(self) -> Iterator[Piece]:
        """Yield piece after piece of tensor after tensor; each is valid until the next."""
        for place, name in enumerate(self.slots):
            for piece in self.kept.pieces(name):
                yield Piece(place, name, *piece)
        self.kept.release()

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


def _place(
    reference: Mapping[str, Tensor],
    count: int,
    dtype: str,
    storage: type[Rows] | type[Tensors],
    files: Files | None,
    part: Part | None,
) -> Rows | Tensors:
    """Return what will keep θ₀ and the task vectors, with θ₀ in it."""
    half = dtype == "fp32" and any(tensor.dtype != torch.float32 for tensor in reference.values())
    kind: type[Rows] | type[Tensors] = Tensors if half and storage is Rows else storage
    if issubclass(kind, Rows):
        return kind(reference, count, DTYPES[dtype])
    own = _own(reference, PRETRAINED, files, part, False)
    return kind(own, [], next(iter(reference.values())).device, part is not None)


def _check(name: str, tensors: Mapping[str, Tensor], files: Files | None) -> None:
    """Refuse tensors that are not finite, or are others in the files that stand for them."""
    owner = "the pre-trained model" if name == PRETRAINED else f"the expert `{name}`"
    if bad := [tensor for tensor, value in tensors.items() if not _finite(value)]:
        raise ValueError(
            f"Tensor `{bad[0]}` of {owner} holds NaN or infinite values ({len(bad)} such "
            f"tensor(s) in all). Check that checkpoint: it cannot be merged."
        )
    if files is None:
        return
    for tensor, value in tensors.items():
        stored = files[name].get(tensor)
        if stored is None or not torch.equal(stored.to(value.dtype), value.cpu()):
            raise ValueError(
                f"Tensor `{tensor}` of {owner} is another in its file than in the loaded model, or is in "
                "none, so that it cannot be read piece by piece. Set `task_vectors.storage: memory`."
            )


def _finite(tensor: Tensor) -> bool:
    flat = tensor.reshape(-1)
    return all(bool(flat[a : a + FINITE].isfinite().all()) for a in range(0, len(flat), FINITE))


def _own(
    tensors: Mapping[str, Tensor],
    name: str,
    files: Files | None,
    part: Part | None,
    keeps: bool,
) -> Mapping[str, Tensor]:
    """Return tensors that nobody else changes: in files, of a model that is ours, or copies."""
    own = tensors
    if files is not None:
        own = Converted(files[name], {tensor: value.dtype for tensor, value in tensors.items()})
    own = own if part is None else part(own)
    if files is not None or (keeps and part is None):
        return own
    return {name: tensor.clone() for name, tensor in own.items()}


def _check_same_origin(task: str, reference: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse an expert of another pre-training."""
    square = along = moved = 0.0
    pair = Tensors(reference, [tensors], next(iter(reference.values())).device)
    for name in (name for name, tensor in reference.items() if tensor.ndim > 1):
        for _, _, own, (tau,) in pair.pieces(name):
            square += float(own.dot(own))
            along += float(own.dot(tau))
            moved += float(tau.dot(tau))
    norms = (square * (square + 2 * along + moved)) ** 0.5  # ‖θ₀‖ ‖θ₀ + τ‖
    cosine = (square + along) / norms if norms else 1.0
    if cosine < UNRELATED:
        raise ValueError(
            f"The expert `{task}` was not fine-tuned from this pre-trained model: the cosine between their "
            f"weight matrices is {cosine:.2f}, where fine-tuning leaves more than 0.9. Give the "
            "pre-trained model of the experts; or, to merge experts of different pre-training around this "
            "one, set `task_vectors.pretraining=different`."
        )
