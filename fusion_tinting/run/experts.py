"""What the experts predict: computed once per sample, one expert at a time, and remembered on disk."""

import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusion_tinting.errors import explained, of_task
from fusion_tinting.method.content import content_hash, value_hash
from fusion_tinting.method.models import PlainModels, caching, release, renew, require_module
from fusion_tinting.method.precision import FULL, fitting, precision_of, working
from fusion_tinting.method.shards import here
from fusion_tinting.method.task_vectors import TaskVectors
from fusion_tinting.method.tensors import Tensors
from fusion_tinting.method.tinted_model import call, logits_of
from fusion_tinting.run.answers import close
from fusion_tinting.run.cache import recall, remember
from fusion_tinting.run.processes import SMALL_MODEL, Processes, sensible_threads
from fusion_tinting.run.surroundings import undisturbed
from fusion_tinting.run.top_predictions import (
    WHOLE_BYTES,
    ClassIds,
    Predictions,
    TopPredictions,
    dense,
    joined,
    kept,
    mapped,
    read,
)
from fusion_tinting.run.unlabeled import Unlabeled, to_device

KIND = "predictions"


class LoadedExperts(Mapping[str, nn.Module]):
    """Experts that are loaded when asked for; none is kept longer than it is used, but for small ones.

    Args:
        tasks: their names, in order.
        load: gives the encoder of a task's expert.
        stored: gives the tensors of a task's expert, or of the pre-trained model, in their files; None
            where they are in none.
    """

    def __init__(
        self,
        tasks: list[str],
        load: Callable[[str], nn.Module],
        stored: Callable[[str], Mapping[str, Tensor]] | None = None,
    ):
        self._tasks, self._load, self.stored = tasks, load, stored
        self._loaded: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
        self._small: dict[str, nn.Module] = {}

    def __getitem__(self, task: str) -> nn.Module:
        if task not in self._tasks:
            raise KeyError(task)
        expert = self._loaded.get(task)
        if expert is None:
            expert = self._loaded[task] = self._load(task).eval()
            if sum(parameter.numel() for parameter in expert.parameters()) <= SMALL_MODEL:
                self._small[task] = expert
        return expert

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


class ResidentExperts(Mapping[str, nn.Module]):
    """The one encoder that is in memory, with the weights of the expert that is asked for written into it.

    Args:
        encoder: changed by each access.
        vectors: θ₀ and the experts, tensor by tensor.
        experts: task -> encoder, loaded on access; asked for those of another precision than θ₀.
        part: of the encoder, which alone is wanted; the tensors of the rest are left as they are.
    """

    def __init__(
        self,
        encoder: nn.Module,
        vectors: TaskVectors,
        experts: Mapping[str, nn.Module],
        part: nn.Module | None = None,
    ):
        self._encoder, self._vectors, self._experts = release(encoder), vectors, experts
        parameters = (encoder if part is None else part).parameters()
        wanted = set(map(id, parameters))  # not by name: tied ones may have another
        self._names = [name for name in vectors.slots if id(encoder.get_parameter(name)) in wanted]

    def __getitem__(self, task: str) -> nn.Module:
        if task in self._vectors.unlike:
            return self._experts[task]
        assert isinstance(self._vectors.kept, Tensors)
        return self._written(self._vectors.kept.experts[self._vectors.tasks.index(task)])

    def restore(self) -> None:
        """Write θ₀ into the encoder again."""
        assert isinstance(self._vectors.kept, Tensors)
        self._written(self._vectors.kept.base)

    @torch.no_grad()
    def _written(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        for name in self._names:
            here(self._encoder.get_parameter(name)).copy_(tensors[name])
        renew(caching(self._encoder))
        return self._encoder

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors.tasks)

    def __len__(self) -> int:
        return len(self._vectors.tasks)


def at_hand(
    encoder: nn.Module,
    vectors: TaskVectors,
    experts: Mapping[str, nn.Module],
    part: nn.Module | None = None,
) -> Mapping[str, nn.Module]:
    """Return experts without loading them again, where their tensors are at hand already.

    Args:
        encoder: ours, changed by each access where that is so.
        vectors: θ₀ and the task vectors.
        experts: task -> encoder.
        part: see `ResidentExperts`.
    """
    in_memory = not isinstance(experts, PlainModels) or experts.in_memory
    resident = isinstance(vectors.kept, Tensors) and (vectors.kept.shared or not in_memory)
    return ResidentExperts(encoder, vectors, experts, part) if resident else experts


CACHED_BYTES = 1 << 30
"""Predictions larger than this (dense outputs) are not remembered on disk."""
BATCH_BYTES = 1 << 28
"""Outputs of one batch; what a language model says of a few samples takes that much."""
ASKED = 4
"""Samples that an expert is asked about before what is kept of it is believed; evenly spread."""
APART = 0.05
"""By what share of the largest an output may differ in a batch, of which rounding is a small part."""
ROUNDING, ROUNDING_IN_HALF, SAME_IDS = 1e-3, 1e-1, 0.99
"""By what share of their size outputs may differ then, in float32 and in half precision; and what share of
the likeliest classes must be the same. Batches of another size round otherwise."""


@undisturbed()
@torch.no_grad()
def predict(
    encoder: nn.Module,
    head: nn.Module,
    unlabeled: Unlabeled,
    *,
    processes: Processes | None = None,
    batch_size: int = 128,
    progress: "tqdm[Any] | None" = None,
    top: int | None = None,
) -> Predictions:
    """Return head(encoder(x)) of every sample, (N, ...), in float32 on the CPU or in a compact form.

    Models run in `eval()` mode.

    With several processes each predicts its share and all receive the whole.

    Args:
        encoder: of the expert; a copy runs.
        head: of the task; a copy runs.
        unlabeled: the samples.
        processes: where it runs.
        batch_size: at most; fewer where their outputs would exceed `BATCH_BYTES`.
        progress: a bar to move on.
        top: how much of a class distribution is kept, see `top_predictions.kept`. None keeps all.

    Raises:
        ValueError: an output that is not finite, or an encoder or head that is not a module.
    """
    require_module("The expert", encoder)
    require_module("The head", head)
    unlabeled = unlabeled if isinstance(unlabeled, Unlabeled) else Unlabeled.of(unlabeled, encoder)
    processes, unlabeled = processes or Processes(), unlabeled.fitted(encoder)
    count = len(unlabeled)
    # With too few samples to share every process predicts them all.
    sharers = processes.alone() if count < processes.count else processes
    own: range = sharers.share(range(count))
    # Who share a model must run it as often: whoever has a sample less takes one twice.
    rows = [*own, *own[:1]] if processes.shards and len(own) * sharers.count < count else own
    expert = _Expert(encoder, head, processes.device)
    parts: list[Predictions] = []
    with sensible_threads(sum(p.numel() for p in expert.parameters()), processes.device):
        for output in outputs(expert, unlabeled, rows, processes=processes, batch_size=batch_size):
            part = kept(output, top, count)
            _require_finite(output if isinstance(part, ClassIds) else part)
            parts.append(part.to("cpu"))
            if progress is not None:
                progress.update(len(parts[-1]))
    return mapped(joined(parts), lambda part: sharers.gather(part[: len(own)], count))


class _Expert(nn.Module):
    """An encoder and a head, as `working` returns them: never the caller's own."""

    def __init__(self, encoder: nn.Module, head: nn.Module, device: torch.device):
        super().__init__()
        self.precision = precision_of([encoder, head])
        self.encoder, self.head = (working(part, self.precision).to(device) for part in (encoder, head))

    def forward(self, inputs: Any) -> Tensor:
        return logits_of(self.head(call(self.encoder, fitting(inputs, self.precision))))


@torch.no_grad()
def outputs(
    model: Callable[..., Tensor],
    unlabeled: Unlabeled,
    rows: Sequence[int],
    *,
    processes: Processes,
    batch_size: int = 128,
) -> Iterator[Tensor]:
    """Yield `model(inputs)` of one batch after another, shape (B, ...), float32, on the device.

    Args:
        model: what takes a batch.
        unlabeled: the samples.
        rows: which samples, in order.
        processes: where it runs.
        batch_size: at most; fewer where their outputs would exceed `BATCH_BYTES`.
    """

    def run(inputs: Any) -> Tensor:
        with processes.autocast():
            return model(to_device(inputs, processes.device)).float()

    with explained("the model cannot take the first sample"):
        one = run(unlabeled.first())
    size = max(1, min(batch_size, BATCH_BYTES // max(1, one.nbytes)))
    schedule = [rows[start : start + size] for start in range(0, len(rows), size)]
    for chosen, inputs in zip(schedule, unlabeled.batches(schedule), strict=True):
        with explained(f"the model cannot take {unlabeled.named(chosen)}"):
            output = run(inputs)
        if chosen[0] == 0 and output.shape[1:] == one.shape[1:]:
            _require_alone(one, output[:1])
        yield output


def _require_alone(alone: Tensor, among_others: Tensor) -> None:
    """Refuse a model of which what it makes of a sample changes with the size of its batch."""
    size = alone.abs()
    apart = (alone - among_others).abs().max() / size.where(size < 1e30, 0).max().clamp(min=1e-12)
    if apart > APART:
        raise ValueError(
            "what the model makes of the first sample differs among others, in a batch, from what it makes "
            "of it alone. Give what pads batches a mask, or normalize each sample alone."
        )


def _require_finite(predictions: Predictions) -> None:
    values = predictions.log_probs if isinstance(predictions, TopPredictions) else predictions
    if isinstance(values, Tensor) and not torch.isfinite(values).all():
        raise ValueError(
            "The expert's prediction is NaN or infinite; check its inputs, checkpoint and head."
        )


def predict_experts(
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Unlabeled],
    *,
    processes: Processes | None = None,
    progress: bool = True,
    cache: bool = False,
    top: int | Mapping[str, int | None] | None = None,
) -> dict[str, Predictions]:
    """Return task -> what its expert predicts for each of its unlabeled samples; see `predict`.

    Args:
        experts: task -> encoder; may load on access.
        heads: task -> head.
        unlabeled: task -> the samples.
        processes: where it runs.
        progress: whether the first process shows a bar.
        top: see `predict`; or task -> that.
        cache: whether to keep them in the user's cache folder, by the content of expert, head and
            data, and to take from there what an earlier run has left. Data whose content cannot be told
            (see `Unlabeled.whole_content`) is predicted anew, and so is what a few samples, asked
            again, do not bear out.

    Raises:
        ValueError: predictions that are not finite.
    """
    processes = processes or Processes()
    predictions: dict[str, Predictions] = {}
    total = sum(len(unlabeled[task]) for task in experts)
    show = progress and processes.rank == 0
    with tqdm(total=total, unit="sample", disable=not show, dynamic_ncols=True) as bar:
        for task in experts:
            bar.set_description(f"Expert {task}")
            models = experts[task], heads[task]
            amount = top[task] if isinstance(top, Mapping) else top
            # Who share a model hold no whole tensor whose content could be looked at.
            key = (
                _key(*models, unlabeled[task], processes, amount)
                if cache and not processes.shards
                else None
            )
            rows = len(unlabeled[task])
            kept_there = None if key is None else recall(KIND, key, rows, partial(read, name=KIND))
            if kept_there is not None and not _confirmed(
                kept_there, *models, unlabeled[task], processes, amount
            ):
                kept_there = None  # the same hash, and yet another model
            if _everywhere(kept_there is not None, processes) and kept_there is not None:
                predictions[task] = kept_there
                bar.update(len(kept_there))
                continue
            with of_task(task):
                predicted = predict(*models, unlabeled[task], processes=processes, progress=bar, top=amount)
            predictions[task] = predicted
            if key is not None and processes.rank == 0 and predicted.nbytes <= CACHED_BYTES:
                remember(KIND, key, predicted if isinstance(predicted, Tensor) else predicted.tensors())
    return predictions


def _confirmed(
    there: Predictions,
    encoder: nn.Module,
    head: nn.Module,
    unlabeled: Unlabeled,
    processes: Processes,
    top: int | None,
) -> bool:
    """Return whether an expert, asked about a few samples, predicts what is kept of it."""
    last = len(unlabeled) - 1
    rows = sorted({last * place // (ASKED - 1) for place in range(ASKED)})
    expert, few, alone = _Expert(encoder, head, processes.device), unlabeled.subset(rows), processes.alone()
    asked = outputs(expert, few, range(len(rows)), processes=alone)
    now = joined([kept(output, top, len(unlabeled)).to("cpu") for output in asked])
    one, other = dense(there[torch.tensor(rows)]), dense(now)
    if one.shape != other.shape:
        return False
    if isinstance(there, ClassIds):
        return bool((one.argmax(1) == other.argmax(1)).float().mean() >= SAME_IDS)
    if isinstance(there, TopPredictions):  # classes that are almost as likely may change places
        one, other = one.softmax(1), other.softmax(1)
    full = processes.precision == "float32" and expert.precision == FULL
    return close(one, other, ROUNDING if full else ROUNDING_IN_HALF)


def _key(
    encoder: nn.Module, head: nn.Module, unlabeled: Unlabeled, processes: Processes, top: int | None
) -> str | None:
    """Return a hash of models, data and precision; None where the data's content is unknown."""
    content = unlabeled.whole_content()
    if content is None:
        return None
    models = [_whole_hash(module) for module in (encoder, head)]
    parts = [*models, content, processes.precision, top, WHOLE_BYTES]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _whole_hash(module: nn.Module) -> str:
    tensors = module.state_dict(keep_vars=True)
    return f"{content_hash(tensors)} {value_hash(module, tensors.values())}"


def _everywhere(here: bool, processes: Processes) -> bool:
    """Return whether it is so on all processes: either all of them read or all of them predict."""
    return int(processes.sum(torch.tensor(int(here), device=processes.device))) == processes.count
