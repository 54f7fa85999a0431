"""One look at the first samples of every task, before anything: do they, the models and the settings fit?

The model is asked for one sample and for two, and its gradients are taken once. What would go wrong after
hours, or go wrong and never be seen, is refused here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fusion_tinting.errors import abbreviate, of_task
from fusion_tinting.method.merging import load_merged, on_gradient
from fusion_tinting.method.models import PlainModels, caching, renew
from fusion_tinting.method.objectives import Reads, losses_of
from fusion_tinting.method.recomputation import blocks_in, computed_twice
from fusion_tinting.method.sampling import kept_by
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.shards import here
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.method.tints import HOOKS
from fusion_tinting.run.experts import predict
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.samples import described, tensors_in
from fusion_tinting.run.surroundings import attributes_kept
from fusion_tinting.run.top_predictions import dense
from fusion_tinting.run.unlabeled import Unlabeled, to_device

BY_CLASS = (Reads.ARG_MAX, Reads.DISTRIBUTION, Reads.DIRECTION)
"""What is read along axis 1 of an output."""


FEW = 8
"""Samples that are looked at for one of another size."""
SAME, CLOSE = 1e-3, 0.05
"""Differences, as shares of the largest output, that rounding may make between equal batches, and between
batches of one sample and of two."""


def first_look(
    model: TintedNetwork,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Mapping[str, Unlabeled],
    settings: Settings,
    processes: Processes,
) -> None:
    """Find out whether the first inputs of every task can be learned from.

    Args:
        model: untrained; its buffers and attributes are what they were afterwards.
        experts: task -> encoder.
        heads: task -> head.
        unlabeled: task -> its inputs.
        settings: of the adaptation.
        processes: where it runs.

    Raises:
        ValueError: naming the task, and what does not fit.
    """
    model.to(processes.device)
    with torch.random.fork_rng(devices=[]), _unchanged(model):
        for task, inputs in unlabeled.items():
            with of_task(task):
                inputs.require_repeatable()
                look = _Look(model, task, inputs, settings, processes)
                look.require_output()
                if not isinstance(experts, PlainModels) or experts.in_memory:  # or each would be loaded
                    look.require_same(experts[task], heads[task])
                if settings.steps:
                    look.require_recomputable()
                    look.require_gradients()


class _Look:
    """What the first samples of a task tell."""

    def __init__(
        self,
        model: TintedNetwork,
        task: str,
        inputs: Unlabeled,
        settings: Settings,
        processes: Processes,
    ):
        self.model, self.task, self.inputs = model, task, inputs
        self.settings, self.processes = settings, processes
        self.reads = settings.objective_of(task).reads
        self.channels: tuple[Tensor, int] | None = None
        with torch.no_grad(), self._watched():
            self.output = self._ask(1)

    def _ask(self, count: int, backward: bool = False) -> Tensor:
        return self._answer(self.inputs.first(count, backward))

    def _answer(self, inputs: Any) -> Tensor:
        renew(caching(self.model))
        try:
            with self.processes.autocast():
                output: Tensor = self.model(to_device(inputs, self.processes.device), self.task)
                return output
        except Exception as error:  # whatever a model raises
            raise ValueError(
                "the model and its head cannot take this task's inputs, of which the first is "
                f"{described(inputs)}: {error}. Another choice is made with `inputs=`: a function from a "
                "batch to what the encoder takes."
            ) from error

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Remember the output of the last linear map, and which of its axes holds the channels."""

        def note(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                convolves = isinstance(module, nn.modules.conv._ConvNd)
                self.channels = output.detach(), 1 if convolves else output.ndim - 1

        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        handles = [m.register_forward_hook(note) for m in self.model.modules() if isinstance(m, kinds)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def require_output(self) -> None:
        """Refuse an output that is no logits or values, one for each sample, with classes along axis 1."""
        one, two = self.output, self._ask(2)
        shapes = f"{tuple(one.shape)} for one sample, {tuple(two.shape)} for two"
        if not one.is_floating_point():
            raise ValueError(f"The head gives {one.dtype}: expected logits or values, before any arg-max.")
        if one.ndim == 0 or (len(one), len(two)) != (1, 2):
            raise ValueError(f"The output must have the samples along its first axis. It is {shapes}.")
        if one.shape[1:] != two.shape[1:] or one.numel() == 0:
            raise ValueError(f"The output of a sample must be of one size in every batch. It is {shapes}.")
        if not (one.isfinite().all() and two.isfinite().all()):
            raise ValueError("The output is NaN or infinite; check its inputs, checkpoint and head.")
        if self.reads in BY_CLASS:
            self._require_classes()
        self._require_repeatable(two)
        self._require_lesson(two.float())

    def _require_repeatable(self, two: Tensor) -> None:
        """Refuse an output that is drawn at random, or depends on what else is in a batch."""
        if _apart(self._ask(1), self.output) > SAME:
            raise ValueError(
                "The output of one sample is not the same twice: the model draws at random, in `eval` mode "
                "too. Turn that off: the expert's prediction would be of another draw."
            )
        backward = self._ask(2, backward=True)
        same = _apart(two[:1], self.output) <= CLOSE and _apart(backward.flip(0), two) <= CLOSE
        if not (same and self._pads_without_trace()):
            raise ValueError(
                "The output of a sample differs with the other samples in its batch, or with their order, "
                "and cannot be compared with the expert's. Give what pads batches a mask, normalize each "
                "sample alone, and keep the order."
            )

    def _pads_without_trace(self) -> bool:
        """Return whether a sample of another size than the first answers alone as it does beside that."""
        first = _sizes(self.inputs.first())
        rows = range(1, min(FEW, len(self.inputs)))
        alone = ((row, self.inputs.subset([row]).first()) for row in rows)
        row, batch = next(((row, batch) for row, batch in alone if _sizes(batch) != first), (0, None))
        if not row:
            return True
        both = self.inputs.subset([0, row]).first(2)
        pair, own = self._answer(both), self._answer(batch)
        ends = ((pair[:1], self.output), (pair[1:], own))
        return all(one.shape != other.shape or _apart(one, other) <= CLOSE for one, other in ends)

    def _require_lesson(self, output: Tensor) -> None:
        """Refuse a sampler or an objective that returns something else than it should."""
        with torch.enable_grad():
            output = output.detach().requires_grad_()
            try:
                kept_by(self.settings.sampler_of(self.task), output.detach(), output.detach().flip(0))
                losses_of(self.settings.objective_of(self.task), output, output.detach().flip(0))
            except ValueError:
                raise
            except Exception as error:  # whatever a function of the user's raises
                raise ValueError(
                    "The sampler or the objective cannot take outputs of shape "
                    f"{tuple(output.shape)}: {error}"
                ) from error

    def _require_classes(self) -> None:
        """Refuse an output whose classes are not along axis 1, as far as the last linear map tells."""
        output = self.output.float()
        if output.ndim == 1:
            raise ValueError(
                "The output is a single number for each sample, shape (1,), and no class logits (batch, "
                "classes). Set `objective=l1`, or give it an axis: `.unsqueeze(1)`."
            )
        axis = None if output.ndim == 2 or self.channels is None else _place(output, *self.channels)
        if axis not in (None, 1):
            raise ValueError(
                f"The output is {tuple(output.shape)} for one sample, with its classes along axis {axis}. "
                f"Expected (batch, classes, ...): add `.movedim({axis}, 1)` to the head."
            )

    def require_same(self, expert: nn.Module, head: nn.Module) -> None:
        """Refuse an expert whose output is of another shape than the tinted model's."""
        alone = self.processes.alone()
        theirs = dense(predict(expert, head, self.inputs.subset([0]), processes=alone))
        if theirs.shape != self.output.shape:
            raise ValueError(
                f"The expert's output is {tuple(theirs.shape)} for one sample, the tinted model's "
                f"{tuple(self.output.shape)}. They must be equal: do both models have one configuration?"
            )
        self._require_merges_to(theirs.to(self.output))

    @torch.no_grad()
    def _require_merges_to(self, theirs: Tensor) -> None:
        """Refuse models that differ in more than what is merged: θ₀ + τ must answer as the expert does."""
        model, place = self.model, self.model.tasks.index(self.task)
        try:
            load_merged(model.encoder, model.vectors, torch.eye(len(model.tasks))[place])
            apart = _apart(self._ask(1), theirs)
        finally:
            load_merged(model.encoder, model.vectors, torch.zeros(len(model.tasks)))
        if apart > CLOSE:
            raise ValueError(
                "With λ = 1 for this task alone the encoder answers otherwise than its expert, by "
                f"{apart:.0%}: the models differ in more than parameters. Is there a plain tensor, a list "
                "or a function of another value in one, or something computed from its weights and kept? "
                "Make it equal, a parameter, or empty."
            )

    @torch.no_grad()
    def require_recomputable(self) -> None:
        """Refuse blocks whose gradients would be wrong, for they do not compute the same again."""
        if self.settings.gradient_checkpointing:
            with computed_twice(blocks_in(self.model)) as others:
                self._ask(1)
            if others:
                raise ValueError(
                    "With `gradient_checkpointing` blocks are computed again, and a "
                    f"{type(others[0]).__name__} does not do the same then: it changes what it is given or "
                    "what it keeps, such as a tensor in place, a list, a cache of keys or a counter. Make "
                    "it do without, or leave `gradient_checkpointing` out."
                )

    def require_gradients(self) -> None:
        """Refuse models in which λ or the tint could not learn."""
        own = dict(self.model.encoder.named_parameters())
        weights = {name: own[name] for name in self.model.vectors.slots if name in own}
        trains = [
            self.settings.lr if rate is None else rate
            for rate in (self.settings.lr_coefficients, self.settings.lr_tints)
        ]
        self.reached: set[str] = set()
        hooks = []
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hooks.append(on_gradient(weight, partial(self._note, name)))
        try:
            with torch.enable_grad():
                output = self._ask(1)
                if output.requires_grad:
                    self._backward(output)
            if trains[0] and weights:
                self._require_moving(weights)
            if trains[1] and self.model.tints:
                self._require_tinted()
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None
            for hook in hooks:
                hook.remove()
            for weight in weights.values():
                weight.requires_grad_(False)

    def _backward(self, output: Tensor) -> None:
        try:
            torch.autograd.backward(output, torch.randn_like(output))
        except RuntimeError as error:
            raise ValueError(
                f"no gradients can be taken of the model, which must be learned from: {error}"
            ) from error

    def _note(self, name: str, weight: Tensor) -> None:
        """Remember that a gradient has reached a tensor, and drop it: all are as large as a model."""
        self.reached.add(name)
        weight.grad = None

    def _require_moving(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Refuse tensors that the output depends on and no gradient reaches: their λ would not move."""
        tinted = self.model.tinted_tensors
        still = {n: w for n, w in weights.items() if n not in self.reached and n not in tinted}
        if not still or (len(still) < len(weights) - len(tinted) and not self._depends_on(still.values())):
            return
        still = {n: w for n, w in still.items() if self._depends_on([w])} or still
        raise ValueError(
            f"No gradient reaches {abbreviate(list(still))}, of the encoder: their λ would "
            "never move. Does `forward` run under `torch.no_grad()`, detach what it computes, or freeze "
            "its parameters? Set `lr_coefficients=0` to leave λ as it is."
        )

    @torch.no_grad()
    def _depends_on(self, weights: Any) -> bool:
        kept = [(here(weight), here(weight).clone()) for weight in weights]
        try:
            for weight, before in kept:
                weight += 0.1 * (before.abs().mean() + 1e-3) * torch.randn_like(before)
            return _apart(self._ask(1), self.output) > SAME / 10
        finally:
            for weight, before in kept:
                weight.copy_(before)

    def _require_tinted(self) -> None:
        """Refuse a layer that is used, or used too, by another way than through its place in the model."""
        tint, layer = self.model.tints[self.task], self.model.layer
        again = [name for name in self.model.tinted_tensors if name in self.reached]
        if again or all(parameter.grad is None for parameter in tint.parameters()):
            how = (
                f"it still reaches the output by {abbreviate(again)}" if again else "its tint is never used"
            )
            raise ValueError(
                f"The layer `{layer}` is to be tinted, but {how}: `forward` calls it by another name, "
                "keeps it in a plain list, shares its tensors, or leaves out what it gives. Tint another "
                "layer, or call it by its own name alone."
            )


def _sizes(inputs: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(inputs)]


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between outputs, as a share of the largest number but padding."""
    one, other = one.float(), other.float()
    size = other.abs()
    difference = (one - other).abs().max() / size.where(size < 1e30, 0).max().clamp(min=1e-12)
    return float(difference)


def _place(output: Tensor, channels: Tensor, axis: int) -> int | None:
    """Return which axis of an output holds the channels of the last linear map; None if that is open."""
    count, channels = channels.shape[axis], channels.float()
    if channels.numel() != output.numel() or channels.ndim != output.ndim:
        changed = output.shape[1] != count and output.shape[-1] == count
        return output.ndim - 1 if changed else None
    for place in range(1, output.ndim):
        moved = channels.movedim(axis, place)
        if moved.shape == output.shape and torch.equal(moved, output):
            return place
    return output.ndim - 1 if output.shape[1] != count and output.shape[-1] == count else None


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Leave counters and caches that a model keeps as they were, and its hooks."""
    kept = [
        (module, dict(module._buffers), [(b, b.clone()) for b in module._buffers.values() if b is not None])
        for module in model.modules()
    ]
    hooks = [(vars(module)[kind], dict(vars(module)[kind])) for module, _, _ in kept for kind in HOOKS]
    with attributes_kept(model):
        try:
            yield
        finally:
            for held, kept_there in hooks:
                held.clear()
                held.update(kept_there)
            for module, registered, buffers in kept:
                module._buffers.update(registered)
                for buffer, before in buffers:
                    buffer.copy_(before)
