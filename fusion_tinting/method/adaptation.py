"""Test-time adaptation: λ and the tints, trained together on unlabelled inputs.

    minimise over λ and φ_1..φ_K   Σ_k E_x [ loss( C_k(x; θ(λ), φ_k), expert_k(x) ) ]

Read `Adaptation.iteration` first: it is the method.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fusion_tinting.method.averaging import Average
from fusion_tinting.method.coefficients import Coefficients
from fusion_tinting.method.merging import MergedWeights, coefficient_gradient
from fusion_tinting.method.objectives import agreement, l1
from fusion_tinting.method.optimizers import Optimizers
from fusion_tinting.method.sampling import resolve_sampler
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.run import checkpoint
from fusion_tinting.run.history import History
from fusion_tinting.run.processes import Processes, freed_memory_kept, sensible_threads
from fusion_tinting.run.top_predictions import Predictions, dense
from fusion_tinting.run.unlabeled import Unlabeled, batch_schedule, resident, task_order, to_device

LOOK = 10
"""Iterations between two looks at a GPU's figures, each of which waits for it; a divisor of
`checkpoint.EVERY`. On a CPU nothing waits, and every iteration is looked at."""


ON_A_CPU = 1 << 18
"""Numbers in the batches of one pass: two of 32 images of 32 x 32 pixels, never two of a ViT-B/32's. Of
the former two batches together take 4 % less than apart, and eight more."""


class Adaptation:
    """The joint optimisation of λ and the tints of `model`, whose encoder it merges anew after each step.

    Use it as a context (`with`): on leaving, the encoder holds θ(λ) of the last step. Nothing in an
    iteration waits for the device; `look` does, which fetches the figures.

    Several processes share the work: in sequential mode each batch, in joint mode the tasks, whose tints
    are trained where they live and known elsewhere after `share_tints`.

    Args:
        model: trained in place.
        unlabeled: task -> its inputs.
        predictions: task -> what the expert predicts for each of them, (N, ...).
        settings: see `Settings`.
        processes: where it runs.
    """

    def __init__(
        self,
        model: TintedModel,
        unlabeled: Mapping[str, Unlabeled],
        predictions: Mapping[str, Predictions],
        settings: Settings,
        processes: Processes | None = None,
    ):
        self.settings, self.processes = settings, processes or Processes()
        device, joint = self.processes.device, settings.update == "joint"
        self.shares = self.processes.alone() if joint else self.processes
        self.mine = self.processes.mine(model.tasks) if joint else model.tasks
        self.model = model.to(device)
        self.vectors = model.vectors = model.vectors.to(device)
        self.unlabeled = unlabeled
        self.coefficients = Coefficients(
            self.vectors.names,
            model.tasks,
            init=settings.init,
            granularity=settings.granularity,
            clamp=settings.clamp,
        ).to(device)
        self.objectives = {task: settings.objective_of(task) for task in model.tasks}
        self.sampler = resolve_sampler(settings.sampler)
        self.merged = MergedWeights(model.encoder, self.vectors, trainable=settings.lr_coefficients != 0)
        self.optimizers = Optimizers(self.coefficients.raw, model.tints, settings)
        averaged = settings.average and settings.steps > 0
        self.average = Average(self._trained(), settings.steps) if averaged else None
        self.history = History.empty(model.tasks, settings.steps)
        self._figures, self._looked = self.history.values.clone().to(device), 0
        self.schedules = {
            task: batch_schedule(len(inputs), settings.batch_size, settings.steps, settings.seed, task)
            for task, inputs in unlabeled.items()
        }
        self.predictions = {task: resident(predictions[task], device) for task in self.mine}
        self._rows = {task: self.schedules[task].to(p.device) for task, p in self.predictions.items()}

    def __enter__(self) -> "Adaptation":
        self.merged.__enter__().write(self.coefficients())
        self.at_once = self._numbers_at_once()
        return self

    def __exit__(self, *_) -> None:
        self.merged.__exit__()

    def batches(self, start: int = 0) -> dict[str, Iterator]:
        """Task -> its batches from iteration `start` on: what `iteration` takes."""
        rows = {task: map(self.shares.mine, self.schedules[task][start:]) for task in self.mine}
        return {task: self.unlabeled[task].batches(rows[task]) for task in self.mine}

    def iteration(self, step: int, inputs: Mapping[str, Iterator]) -> None:
        """Visit every task once, in random order; `inputs` yields each task's next batch."""
        order = [t for t in task_order(self.model.tasks, step, self.settings.seed) if t in self.mine]
        groups = [order] if self.settings.update == "joint" else [[task] for task in order]
        for group in groups:
            taught = {}
            for batches in self._passes(group, inputs):
                taught |= self.teach(step, batches)
            self.update(step, taught)
        if self.average is not None:
            self.average.add(step)

    def _passes(self, group: list[str], inputs: Mapping[str, Iterator]) -> Iterator[dict]:
        """Task -> its batch, for as many tasks as the encoder takes at once."""
        batches: dict = {}
        for task in group:
            batch = to_device(next(inputs[task]), self.processes.device)
            several = [*batches.values(), batch]
            if batches and not (self.model.one_pass(several) and _numbers(several) <= self.at_once):
                yield batches
                batches = {}
            batches[task] = batch
        yield batches

    def teach(self, step: int, batches: Mapping[str, Any]) -> dict[str, Tensor]:
        """Accumulate the gradients of the tasks' losses, each on its batch; task -> was a sample kept?"""
        with self.processes.autocast():
            outputs = self.model.together(batches)
        found = {task: self._loss(task, step, output.float()) for task, output in outputs.items()}
        sum(loss for loss, _ in found.values()).backward()
        return {task: kept for task, (_, kept) in found.items()}

    def _loss(self, task: str, step: int, output: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over the samples that the sampler keeps of the whole batch, of which this
        process holds its share; and whether there were any."""
        expert = dense(self.predictions[task][self._rows[task][step]].to(self.processes.device))
        batch = self.shares.gather(output.detach(), len(expert))
        keep = self.sampler(batch, expert)
        _expect(keep.dtype == torch.bool and keep.shape == (len(batch),), "sampler", "a boolean mask", keep)
        losses = self.objectives[task](output, self.shares.mine(expert))
        _expect(losses.shape == (len(output),), "objective", "one loss per sample", losses)
        count = keep.sum()
        loss = losses.where(self.shares.mine(keep), 0).sum() / count.clamp(min=1)
        figures = self._figures[step, self.model.tasks.index(task)]
        # NaN if any sample's loss is, kept or not: nothing is to be learned from such a model.
        figures[0] = self.shares.sum(loss.detach() + 0 * losses.detach().sum())
        figures[1] = agreement(batch, expert, of_values=self.objectives[task] is l1).mean()
        figures[2] = count / len(expert)
        return loss, count > 0

    @torch.no_grad()
    def update(self, step: int, taught: Mapping[str, Tensor]) -> None:
        """One optimiser step from the accumulated gradients, then θ(λ) anew.

        λ's gradient is taken here, once: ∂λ_lk = ⟨∂θ_l, τ_k,l⟩, then through the clamp. It is linear in
        ∂θ, so that several processes need to sum only the (L, K) numbers ∂λ.

        Args:
            taught: task visited -> whether a sample of its batch was kept. The tints of tasks that taught
                nothing stay, with their moments, and λ does if none did.
        """
        if self.settings.lr_coefficients != 0:
            gradient = self.take_gradient()
            with torch.enable_grad():
                self.coefficients().backward(self.processes.sum(gradient))
            some = sum(taught.values(), torch.zeros((), device=self.processes.device))
            self.optimizers.step_coefficients(self.processes.sum(some) > 0)
        for task, kept in taught.items():
            for parameter in self.model.tints[task].parameters() if self.model.tints else ():
                if parameter.grad is not None:
                    parameter.grad = self.shares.sum(parameter.grad)
            self.optimizers.step_tint(task, kept)
        lam = self.coefficients()
        self.merged.write(lam)
        for task in taught:
            k = self.model.tasks.index(task)
            self._figures[step, k, 3] = lam[:, k].mean()

    def take_gradient(self) -> Tensor:
        """∂λ, shape (L, K), of everything taught since the last call; this process's part of it."""
        return coefficient_gradient(self.vectors, self.merged.take_gradients())

    def look(self, step: int) -> range:
        """Fetch what happened up to iteration `step` into `history`; the iterations that are new there.

        Raises:
            ValueError: a loss is not finite; its task and iteration are named.
        """
        new = range(self._looked, step + 1)
        figures = self._figures[new.start : new.stop]
        figures = self.processes.sum(figures) if self._tasks_are_shared else figures
        self.history.values[new.start : new.stop] = figures.cpu()
        self._looked = new.stop
        bad = (~self.history.loss[new.start : new.stop].isfinite()).nonzero()
        if len(bad):
            place, k = bad[0].tolist()
            raise ValueError(
                f"The loss of `{self.model.tasks[k]}` became {self.history.loss[new[place], k].item()} in "
                f"iteration {new[place]}. Lower the learning rate."
            )
        return new

    @torch.no_grad()
    def share_tints(self) -> None:
        """Give every process the tints, and their moments, of the tasks that it did not visit itself."""
        if not self._tasks_are_shared:
            return
        mine = {self.model.tasks.index(task) for task in self.mine}
        for name, tensor in self._tensors().items():
            kind, place, *_ = [*name.removeprefix("optimizer.").removeprefix("average.").split("."), ""]
            if kind == "tints":
                trained = tensor if int(place) in mine else torch.zeros_like(tensor)
                tensor.copy_(self.processes.sum(trained))

    def finish(self) -> None:
        """After the last iteration: every process knows every tint, and with `average` λ and the
        tints are their means."""
        self.share_tints()
        if self.average is not None:
            self.average.take()
            self.merged.write(self.coefficients())

    def state(self) -> dict[str, Tensor]:
        """Everything that the next iteration depends on, as named tensors."""
        return {**self._tensors(), "history": self.history.values, "rng": torch.get_rng_state()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take up what `state` returned before iteration `step`.

        Raises:
            ValueError: other tensors than this version's.
        """
        tensors = {**self._tensors(), "history": self.history.values}
        if set(state) != {*tensors, "rng"}:
            raise ValueError("The checkpoint was written by another version; delete it to start anew.")
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        torch.set_rng_state(state["rng"])
        self._looked = step
        self.merged.write(self.coefficients())

    def rehearsal(self) -> Callable[[], None]:
        """The work of one visit without its effect: how long does it take with so many threads?"""
        task, inputs = self.mine[0], self._first_batch()

        def work() -> None:
            with self.processes.autocast():
                self.model(to_device(inputs, self.processes.device), task).sum().backward()
            self.merged.take_gradients()
            self.model.tint_modules.zero_grad(set_to_none=True)

        return work

    def _first_batch(self):
        task = self.mine[0]
        (inputs,) = self.unlabeled[task].batches([self.shares.mine(self.schedules[task][0])])
        return inputs

    def _numbers_at_once(self) -> int:
        """How many numbers the batches of one pass may hold: on a CPU few, for beyond its caches a larger
        batch costs more than it saves; on a GPU what half of the free memory has room for."""
        device, shared = self.processes.device, self.settings.update == "joint"
        if device.type != "cuda" or not shared or self.settings.steps == 0:
            return ON_A_CPU
        first = self._first_batch()
        if not self.model.one_pass([first]):
            return ON_A_CPU
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self.rehearsal()()
        for_one = torch.cuda.max_memory_allocated(device) - before
        free, _ = torch.cuda.mem_get_info(device)
        return _numbers([first]) * max(1, free // 2 // max(1, for_one))

    @property
    def _tasks_are_shared(self) -> bool:
        return self.settings.update == "joint" and self.processes.count > 1

    def _tensors(self) -> dict[str, Tensor]:
        """Name -> everything that is trained and its optimiser's moments; themselves, not copies."""
        means = {} if self.average is None else self.average.means
        return {
            **self._trained(),
            **self.optimizers.tensors(),
            **{f"average.{name}": tensor for name, tensor in means.items()},
        }

    def _trained(self) -> dict[str, Tensor]:
        tints = {f"tints.{name}": p.detach() for name, p in self.model.tint_modules.named_parameters()}
        return {"coefficients": self.coefficients.raw.detach(), **tints}


def _numbers(batches: list[Tensor]) -> int:
    return sum(batch.numel() for batch in batches)


def _expect(correct: bool, what: str, wanted: str, found: Tensor) -> None:
    if not correct:
        raise ValueError(
            f"The {what} must return {wanted}, shape (batch,). "
            f"Found shape {tuple(found.shape)}, {found.dtype}."
        )


def adapt(
    model: TintedModel,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    *,
    run_dir: Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    on_step=None,
) -> TintedModel:
    """Train λ and the tints of `model`, in place, and return it.

    Args:
        model: from `TintedModel.untrained`.
        unlabeled, predictions: task -> its inputs, and what its expert predicts for them.
        run_dir: where checkpoints go; one found there, of the same run, is continued.
        progress: whether to show a progress bar (on the first process only).
        on_step: called with (step, history) for every iteration; on a GPU for some at a time.

    With the same seed on the same machine two runs differ by rounding only, if they happen to find
    another number of CPU threads the fastest; with one thread (OMP_NUM_THREADS=1) not at all.

    Raises:
        ValueError: a checkpoint in `run_dir` of other settings, models or data; a loss that diverged.
        KeyboardInterrupt: after Ctrl-C, once the iteration is finished and its checkpoint written.
    """
    processes = processes or Processes()
    if (settings.layer is None) != (model.layer is None):
        raise ValueError(f"`settings.layer={settings.layer}`, but the model's is `{model.layer}`.")
    with (
        torch.random.fork_rng(devices=[]),  # a sampler may draw; the caller's generator stays as it is
        Adaptation(model, unlabeled, predictions, settings, processes) as adaptation,
        freed_memory_kept(model.vectors.base.numel(), processes.device),
        sensible_threads(model.vectors.base.numel(), processes.device, adaptation.rehearsal),
        checkpoint.Keeper(adaptation, run_dir) as keeper,
    ):
        torch.manual_seed(settings.seed)
        start = keeper.resume()
        inputs = adaptation.batches(start)
        every = 1 if processes.device.type == "cpu" else LOOK
        with tqdm(
            desc="Tinting",
            total=settings.steps,
            initial=start,
            disable=not (progress and processes.rank == 0),
            dynamic_ncols=True,
        ) as bar:
            for step in range(start, settings.steps):
                adaptation.iteration(step, inputs)
                if (step + 1) % every and step + 1 < settings.steps:
                    continue
                new = adaptation.look(step)
                loss, agreed, kept, _ = adaptation.history.values[step].mean(0).tolist()
                bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreed:.1%}", kept=f"{kept:.0%}")
                bar.update(len(new))
                for seen in new if on_step is not None else ():
                    on_step(seen, adaptation.history)
                keeper.after(step)
        adaptation.finish()
    model.coefficients = adaptation.coefficients.named()
    model.history = adaptation.history
    if settings.steps and model.history.skipped == model.history.kept.numel():
        warnings.warn(
            f"No sample taught: the sampler {settings.sampler!r} kept none in any step, so that λ and the "
            "tints are what they were at the start. Try `sampler=all`.",
            stacklevel=2,
        )
    return model.requires_grad_(False)
