"""Test-time adaptation: λ and the tints, trained together on unlabeled inputs.

    minimize over λ and φ_1..φ_K   Σ_k E_x [ loss( C_k(x; θ(λ), φ_k), expert_k(x) ) ]

Read `Adaptation.iteration` first: it is the method.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fusion_tinting.method.averaging import Average
from fusion_tinting.method.coefficients import Coefficients
from fusion_tinting.method.merging import MergedWeights
from fusion_tinting.method.models import caching, renew
from fusion_tinting.method.objectives import agreement, losses_of
from fusion_tinting.method.optimizers import Optimizers
from fusion_tinting.method.recomputation import blocks_in, recomputed
from fusion_tinting.method.sampling import kept_by
from fusion_tinting.method.schedule import task_order
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.shards import fill, is_sharded
from fusion_tinting.method.tinted_model import TintedNetwork

ON_A_CPU = 1 << 18
"""Numbers in the batches of one pass, by default: two batches of 32 images of 32 x 32 pixels fit, never two
of a ViT-B/32's. Two of the former in one pass take 4 % less time than apart; eight take more."""

LARGE = 100_000_000
"""Parameters from which gradients are worth the memory that they take."""

FIGURES = ("loss", "agreement", "kept", "coefficient")
"""What is recorded of each visit; see `fusion_tinting.run.history.History`."""


class Lesson(NamedTuple):
    """A task's batch.

    Attributes:
        inputs: this process's share of the batch, on the device.
        expert: what the expert predicts for the whole batch, (B, ...), on the device.
    """

    inputs: Any
    expert: Tensor


class Workers(Protocol):
    """Where the arithmetic runs, alone or with others; see `fusion_tinting.run.processes.Processes`."""

    rank: int
    count: int
    device: torch.device
    shards: bool

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes."""

    def share(self, items: Any) -> Any:
        """Return this process's share of a batch's rows, or of other things."""

    def gather(self, part: Tensor, total: int) -> Tensor:
        """Return all processes' parts of `total` rows."""

    def alone(self) -> "Workers":
        """Return the same device and precision, without the other processes."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision in which models run."""


class Adaptation:
    """The joint optimization of λ and the tints of `model`, whose encoder it merges anew after each step.

    Use it as a context (`with`): on leaving, the encoder holds θ(λ) as it was merged last. Nothing in an
    iteration waits for the device; whoever reads `figures` does.

    Several processes share the work: in sequential mode each batch, in joint mode the tasks, whose tints
    are trained where they live and known elsewhere after `share_tints`. Where they share one model too,
    they share each batch in either mode, for all of them must run the same layers at the same time.

    Args:
        model: trained in place.
        settings: see `Settings`.
        processes: where it runs.

    Attributes:
        tasks: those that this process visits.
        figures: of every visit the numbers `FIGURES`, shape (steps, K, 4), on the device; zero where this
            process does not visit.
        numbers_at_once: numbers that the batches of one pass of the encoder may hold.
    """

    def __init__(self, model: TintedNetwork, settings: Settings, processes: Workers):
        self.settings, self.processes = settings, processes
        device, joint = processes.device, settings.update == "joint" and not processes.shards
        self.within = processes.alone() if joint else processes  # those who share one batch
        self.tasks: list[str] = processes.share(model.tasks) if joint else model.tasks
        self.model, self.caching = model.to(device), caching(model)
        self.vectors = model.vectors = model.vectors.to(device)
        if isinstance(settings.init, str):
            raise ValueError(f"`init={settings.init}` is a folder: `fusion_tinting.tint` reads such.")
        self.coefficients = Coefficients(
            self.vectors.names,
            model.tasks,
            init=settings.init,
            granularity=settings.granularity,
            clamp=settings.clamp,
        ).to(device)
        self.objectives = {task: settings.objective_of(task) for task in model.tasks}
        self.samplers = {task: settings.sampler_of(task) for task in model.tasks}
        self.merged = MergedWeights(
            model.encoder,
            self.vectors,
            trainable=settings.lr_coefficients != 0,
            arriving=arriving(settings, self.vectors.size, self.vectors.apart),
        )
        self.optimizers = Optimizers(self.coefficients.raw, model.tints, settings)
        averaged = settings.average and settings.steps > 0
        self.average = Average(self._trained(), settings.steps) if averaged else None
        self.figures = torch.zeros(settings.steps, len(model.tasks), len(FIGURES), device=device)
        self.numbers_at_once = ON_A_CPU

    def __enter__(self) -> "Adaptation":
        self._contexts = ExitStack()
        self._contexts.enter_context(self.merged).write(self.coefficients())
        if self.settings.gradient_checkpointing:
            self._contexts.enter_context(recomputed(blocks_in(self.model)))
        return self

    def __exit__(self, *_: object) -> None:
        self._contexts.close()

    def iteration(self, step: int, lessons: Mapping[str, Iterator[Lesson]]) -> None:
        """Visit every task once, in random order.

        Each visit asks the model for its logits, keeps the samples that the sampler chooses, takes their
        mean loss against the expert and its gradients (`teach`). The visited tints take a step of Adam at
        once (`step_tints`), λ does, and θ(λ) is merged anew, after each task where `update` is
        `sequential` and after all of them where it is `joint` (`update`).

        Args:
            step: the iteration, from 0.
            lessons: task -> what yields its next batch, for the tasks of this process.

        Raises:
            ValueError: a sampler or an objective that returns something else than it should.
        """
        order = [t for t in task_order(self.model.tasks, step, self.settings.seed) if t in self.tasks]
        groups = [order] if self.settings.update == "joint" else [[task] for task in order]
        for group in groups:
            taught: dict[str, Tensor] = {}
            for batches in self._passes(group, lessons):
                kept = self.teach(step, batches)
                self.step_tints(kept)
                taught |= kept
            self.update(step, taught)
        if self.average is not None:
            self.average.add(step)

    def _passes(
        self, group: Sequence[str], lessons: Mapping[str, Iterator[Lesson]]
    ) -> Iterator[dict[str, Lesson]]:
        """Yield task -> its batch, for as many tasks as the encoder takes at once."""
        batches: dict[str, Lesson] = {}
        for task in group:
            lesson = next(lessons[task])
            several = [*(other.inputs for other in batches.values()), lesson.inputs]
            if batches and not (self.model.one_pass(several) and _numbers(several) <= self.numbers_at_once):
                yield batches
                batches = {}
            batches[task] = lesson
        yield batches

    def teach(self, step: int, lessons: Mapping[str, Lesson]) -> dict[str, Tensor]:
        """Accumulate the gradients of the tasks' losses, each on its batch, in one pass of the encoder.

        Args:
            step: the iteration.
            lessons: task -> its batch.

        Returns:
            Task -> whether a sample was kept, a boolean on the device.
        """
        renew(self.caching)
        with self.processes.autocast():
            outputs = self.model.together({task: lesson.inputs for task, lesson in lessons.items()})
        losses, taught = [], {}
        for task, output in outputs.items():
            loss, taught[task] = self._loss(task, step, output.float(), lessons[task].expert)
            losses.append(loss)
        torch.autograd.backward(reduce(torch.add, losses))
        return taught

    def _loss(self, task: str, step: int, output: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's share of the mean loss over the kept samples, and whether any was kept."""
        batch = self.within.gather(output.detach(), len(expert))
        keep = kept_by(self.samplers[task], batch, expert)
        losses = losses_of(self.objectives[task], output, self.within.share(expert))
        count = keep.sum()
        loss = losses.where(self.within.share(keep), 0).sum() / count.clamp(min=1)
        figures = self.figures[step, self.model.tasks.index(task)]
        # NaN if any sample's loss is, kept or not: nothing is to be learned from such a model.
        figures[0] = self.within.sum(loss.detach() + 0 * losses.detach().sum())
        figures[1] = agreement(batch, expert, self.objectives[task].reads).mean()
        figures[2] = count / len(expert)
        return loss, count > 0

    @torch.no_grad()
    def step_tints(self, taught: Mapping[str, Tensor]) -> None:
        """Take a step with the tints of tasks, and drop their gradients: other tasks have no part in them.

        Args:
            taught: task visited -> whether a sample of its batch was kept. The tints of tasks that taught
                nothing stay, with their moments.
        """
        for task, kept in taught.items():
            for parameter in self.model.tints[task].parameters() if self.model.tints else ():
                if parameter.grad is not None and not is_sharded(parameter):
                    parameter.grad = self.within.sum(parameter.grad.to_dense())
            self.optimizers.step_tint(task, kept)

    @torch.no_grad()
    def update(self, step: int, taught: Mapping[str, Tensor]) -> None:
        """Take a step of λ from the accumulated gradients, then merge θ(λ) anew.

        λ's gradient is taken here, once: ∂λ_lk = ⟨∂θ_l, τ_k,l⟩, then through the clamp. It is linear in
        ∂θ, so that several processes need to sum only the (L, K) numbers ∂λ.

        Args:
            step: the iteration.
            taught: task visited -> whether a sample of its batch was kept. λ stays, with its moments, if
                none did.
        """
        if self.settings.lr_coefficients != 0:
            self._step_coefficients(taught.values())
        lam = self.coefficients()
        self.merged.write(lam)
        for task in taught:
            k = self.model.tasks.index(task)
            self.figures[step, k, 3] = lam[:, k].mean()

    def _step_coefficients(self, taught: Iterable[Tensor]) -> None:
        gradient = self.processes.sum(self.take_gradient())
        with torch.enable_grad():
            self.coefficients().backward(gradient)
        count = torch.zeros((), device=self.processes.device)
        for kept in taught:
            count += kept
        self.optimizers.step_coefficients(self.processes.sum(count) > 0)

    def take_gradient(self) -> Tensor:
        """Return ∂λ, shape (L, K), of everything taught since the last call; this process's part of it."""
        return self.merged.take_gradient()

    def rehearse(self, task: str, inputs: Any) -> None:
        """Do the work of one visit without its effect.

        Args:
            task: whose tint.
            inputs: a batch, on the device.
        """
        renew(self.caching)
        with self.processes.autocast():
            self.model(inputs, task).sum().backward()
        self.merged.take_gradient()
        self.model.tint_modules.zero_grad(set_to_none=True)

    @property
    def tasks_are_shared(self) -> bool:
        """Whether the processes visit different tasks."""
        return self.settings.update == "joint" and self.processes.count > 1 and not self.processes.shards

    @torch.no_grad()
    def share_tints(self) -> None:
        """Give every process the tints, and their moments, of the tasks that it did not visit itself."""
        if not self.tasks_are_shared:
            return
        places = {self.model.tasks.index(task) for task in self.tasks}
        for name, tensor in self.state().items():
            kind, place, *_ = [*name.removeprefix("optimizer.").removeprefix("average.").split("."), ""]
            if kind == "tints":
                trained = tensor if int(place) in places else torch.zeros_like(tensor)
                tensor.copy_(self.processes.sum(trained))

    def finish(self) -> None:
        """End the training: every process gets every tint; with `average` λ and the tints become means."""
        self.share_tints()
        if self.average is not None:
            self.average.take()
            self.merged.write(self.coefficients())

    def state(self) -> dict[str, Tensor]:
        """Return name -> everything trained, its optimizer's moments and means: themselves, not copies."""
        means = {} if self.average is None else self.average.means
        return {
            **self._trained(),
            **self.optimizers.tensors(),
            **{f"average.{name}": tensor for name, tensor in means.items()},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, and merge θ(λ) anew.

        Args:
            state: name -> tensor.

        Raises:
            ValueError: other tensors than this version's.
        """
        tensors = self.state()
        if set(state) != set(tensors):
            raise ValueError("The checkpoint was written by another version; delete it to start anew.")
        for name, tensor in tensors.items():
            fill(tensor, state[name])
        self.merged.write(self.coefficients())

    def _trained(self) -> dict[str, Tensor]:
        parameters = self.model.tint_modules.named_parameters()
        tints = {f"tints.{name}": p.detach() for name, p in parameters if p.is_floating_point()}
        return {"coefficients": self.coefficients.raw.detach(), **tints}


def arriving(settings: Settings, size: int, apart: bool) -> bool:
    """Return whether each gradient is contracted as it arrives.

    That is where it is asked for; where tensors are kept apart, for memory is short; and of a large model
    where it costs nothing. Several tasks in one update cost a contraction each, where their sum costs one.

    Args:
        settings: of the adaptation.
        size: P.
        apart: whether task vectors are kept tensor by tensor.
    """
    asked = settings.task_vectors["gradients"]
    free = settings.update == "sequential" and size >= LARGE
    return asked == "arriving" or (asked == "auto" and (apart or free))


def _numbers(batches: Iterable[Tensor]) -> int:
    return sum(batch.numel() for batch in batches)
