"""The loop around the iterations: lessons in order, figures, progress, checkpoints."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from fusion_tinting.errors import of_task
from fusion_tinting.method.adaptation import Adaptation, Lesson
from fusion_tinting.method.schedule import batch_schedule
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.shards import gathered
from fusion_tinting.run import checkpoint
from fusion_tinting.run.context import Context, OnStep
from fusion_tinting.run.files import path_of
from fusion_tinting.run.history import History
from fusion_tinting.run.identity import Identity
from fusion_tinting.run.lock import held
from fusion_tinting.run.processes import Processes, fitting_heap, sensible_threads
from fusion_tinting.run.samples import finite
from fusion_tinting.run.surroundings import attributes_kept, one_at_a_time, undisturbed
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.top_predictions import Predictions, dense
from fusion_tinting.run.unlabeled import Unlabeled, resident, to_device

LOOK = 10
"""Iterations between two looks at a GPU's figures, each of which waits for it; a divisor of
`checkpoint.EVERY`. On a CPU nothing waits, and every iteration is looked at."""

M = TypeVar("M", bound=TintedModel)


@one_at_a_time
@undisturbed()
def adapt(
    model: M,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    *,
    run_dir: Path | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> M:
    """Train λ and the tints of a model, in place, and return it.

    Runs of one seed on one machine are equal bit for bit with one thread (OMP_NUM_THREADS=1); without, they
    differ by rounding where another number of CPU threads proves the fastest.

    Args:
        model: from `TintedModel.untrained`.
        unlabeled: task -> its inputs.
        predictions: task -> what its expert predicts for them.
        settings: see `Settings`.
        run_dir: where checkpoints go; one there, of the same run, is continued.
        processes: where it runs.
        progress: whether to show a progress bar (on the first process only).
        on_step: called with (step, history) for every iteration; on a GPU for several at a time.

    Raises:
        ValueError: a checkpoint in `run_dir` of other settings, models or data; a loss that diverged.
        OSError: `run_dir` cannot be written, or another run works there now.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written; see `checkpoint.HeldInterrupt`.
        SystemExit: the same after SIGTERM.
    """
    where = None if run_dir is None else path_of("run_dir", run_dir)
    unlabeled = {task: inputs.fitted(model.encoder) for task, inputs in unlabeled.items()}
    context = Context(processes or Processes(), where, progress, on_step)
    with held(where, context.processes):
        return train(model, unlabeled, predictions, settings, context)


def train(
    model: M,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    context: Context,
) -> M:
    """Train λ and the tints of a model, in place, and return it; see `adapt`.

    Args:
        model: from `TintedModel.untrained`.
        unlabeled: task -> its inputs.
        predictions: task -> what its expert predicts for them.
        settings: see `Settings`.
        context: where it runs and writes.

    Raises:
        ValueError: as `adapt`.
        KeyboardInterrupt: as `adapt`.
        SystemExit: as `adapt`.
    """
    if (settings.layer is None) != (model.layer is None):
        raise ValueError(f"`settings.layer={settings.layer}`, but the model's is `{model.layer}`.")
    context = context.known(model, settings, unlabeled, model.info.split)
    size, device = model.vectors.size, context.processes.device
    with (
        torch.random.fork_rng(devices=[]),  # a sampler may draw; the caller's generator stays as it is
        attributes_kept(model),
        Adaptation(model, settings, context.processes) as adaptation,
        fitting_heap(size, device, lean=model.vectors.lean),
    ):
        training = Training(adaptation, unlabeled, predictions, context)
        rehearsal = None if context.processes.shards else training.rehearsal  # who share do all alike
        with sensible_threads(size, device, rehearsal):
            torch.manual_seed(settings.seed)
            training.run()
    model.coefficients = adaptation.coefficients.named()
    model.history = training.history
    if settings.steps and model.history.skipped == model.history.kept.numel():
        warnings.warn(
            f"No sample taught: the sampler {settings.sampler!r} kept none in any step, so that λ and the "
            "tints are what they were at the start. Try `sampler=all`.",
            stacklevel=2,
        )
    return model.requires_grad_(False)


class Training:
    """All iterations of an adaptation, from its checkpoint on if there is one.

    Args:
        adaptation: an `Adaptation` inside its `with`.
        unlabeled: task -> its inputs.
        predictions: task -> what its expert predicts for them.
        context: where it runs and writes.

    Attributes:
        history: what has been looked at so far.
    """

    def __init__(
        self,
        adaptation: Adaptation,
        unlabeled: Mapping[str, Unlabeled],
        predictions: Mapping[str, Predictions],
        context: Context,
    ):
        self.adaptation, self.unlabeled, self.context = adaptation, unlabeled, context
        settings, device = adaptation.settings, context.processes.device
        self.history = History.empty(adaptation.model.tasks, settings.steps)
        self._looked = 0
        self._schedules = {
            task: batch_schedule(
                len(unlabeled[task]), settings.batch_size, settings.steps, settings.seed, task
            )
            for task in adaptation.tasks
        }
        self._predictions = {task: resident(predictions[task], device) for task in adaptation.tasks}
        adaptation.numbers_at_once = self._numbers_at_once()

    def run(self) -> None:
        """Do the iterations that are left.

        Raises:
            ValueError: a checkpoint of another run; a loss that diverged.
            KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
            SystemExit: the same after SIGTERM.
        """
        steps, on_cpu = self.adaptation.settings.steps, self.context.processes.device.type == "cpu"
        with checkpoint.HeldInterrupt(self.context.run_dir is not None) as interrupt:
            start = self._resume()
            lessons = self.lessons(start)
            with self._bar(start) as bar:
                for step in range(start, steps):
                    self.adaptation.iteration(step, lessons)
                    if on_cpu or (step + 1) % LOOK == 0 or step + 1 == steps:
                        self._look(step, bar)
                        self._keep(step, interrupt)
            self.adaptation.finish()

    def rehearsal(self) -> Callable[[], None]:
        """Return the work of one visit without its effect: how long does it take with so many threads?"""
        task, inputs = self.adaptation.tasks[0], self._first_batch()
        return lambda: self.adaptation.rehearse(task, to_device(inputs, self.context.processes.device))

    def lessons(self, start: int = 0) -> dict[str, Iterator[Lesson]]:
        """Return task -> its batches from an iteration on: what `Adaptation.iteration` takes.

        Args:
            start: the iteration.
        """
        return {task: self._lessons(task, start) for task in self.adaptation.tasks}

    def _lessons(self, task: str, start: int) -> Iterator[Lesson]:
        """Return a task's batches from an iteration on, each with what its expert predicts."""
        within, device = self.adaptation.within, self.context.processes.device
        schedule, predictions = self._schedules[task][start:], self._predictions[task]
        batches = self.unlabeled[task].batches(map(within.share, schedule))
        rows = schedule.to(predictions.device)
        return (
            Lesson(to_device(batch, device), dense(predictions[chosen].to(device)))
            for batch, chosen in zip(_of_task(task, batches), rows, strict=True)
        )

    def _first_batch(self) -> Any:
        task = self.adaptation.tasks[0]
        (inputs,) = self.unlabeled[task].batches([self.adaptation.within.share(self._schedules[task][0])])
        return inputs

    def _numbers_at_once(self) -> int:
        """Return how many numbers the batches of one pass may hold.

        On a CPU few, for beyond its caches a larger batch costs more than it saves; on a GPU what half of
        the free memory has room for.
        """
        adaptation, device = self.adaptation, self.context.processes.device
        joint, steps = adaptation.settings.update == "joint", adaptation.settings.steps
        alone = device.type != "cuda" or self.context.processes.shards
        if alone or not joint or steps == 0 or adaptation.numbers_at_once == 0:
            return adaptation.numbers_at_once
        first = self._first_batch()
        if not adaptation.model.one_pass([first]):
            return adaptation.numbers_at_once
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self.rehearsal()()
        for_one = torch.cuda.max_memory_allocated(device) - before
        free, _ = torch.cuda.mem_get_info(device)
        return int(first.numel() * max(1, free // 2 // max(1, for_one)))

    def _look(self, step: int, bar: "tqdm[Any]") -> None:
        """Fetch the figures up to an iteration, and tell of them.

        Raises:
            ValueError: a loss is not finite; its task and iteration are named.
        """
        new = range(self._looked, step + 1)
        figures = self.adaptation.figures[new.start : new.stop]
        if self.adaptation.tasks_are_shared:
            figures = self.context.processes.sum(figures)
        self.history.values[new.start : new.stop] = figures.cpu()
        self._looked = new.stop
        bad = (~self.history.loss[new.start : new.stop].isfinite()).nonzero()
        if len(bad):
            place, k = bad[0].tolist()
            loss = self.history.loss[new[place], k].item()
            raise ValueError(
                f"The loss of `{self.history.tasks[k]}` became {loss} in iteration {new[place]}. "
                + self._remedy(step)
            )
        loss, agreed, kept, _ = self.history.values[step].mean(0).tolist()
        bar.set_postfix(loss=f"{loss:.3f}", agreement=f"{agreed:.1%}", kept=f"{kept:.0%}")
        bar.update(len(new))
        self._tell(new)

    def _remedy(self, step: int) -> str:
        """Return what to do about a loss that is not finite, after the inputs of these iterations."""
        for task, inputs in self.unlabeled.items():
            rows = sorted({*self._schedules[task][: step + 1].flatten().tolist()})
            for row, batch in zip(rows, inputs.batches([[row] for row in rows]), strict=True):
                if not finite(batch):
                    return f"Of `{task}` {inputs.named([row])} holds NaN or infinite numbers: leave it out."
        return "Lower the learning rate." if step else "Check what the objective makes of the outputs."

    def _tell(self, new: range) -> None:
        """Tell the caller of iterations; where that raises, a checkpoint is left."""
        try:
            if self.context.on_step is not None:
                # What it draws is no matter of the sampler's, and whether gradients are on its own alone.
                with torch.random.fork_rng(devices=[]), torch.enable_grad():
                    for seen in new:
                        self.context.on_step(seen, self.history)
        except BaseException:
            if self.context.processes.count == 1:
                self._write(new.stop)
            raise

    def _resume(self) -> int:
        """Take up the checkpoint, if there is one; return the first iteration to do."""
        run_dir = self.context.run_dir
        if run_dir is None or not checkpoint.checkpoint_path(run_dir).is_file():
            return 0
        state, identity, step, threads = checkpoint.read_checkpoint(checkpoint.checkpoint_path(run_dir))
        self.identity.require_same(identity, run_dir)
        history, rng = state.pop("history", None), state.pop("rng", None)
        if history is None or rng is None:
            raise ValueError("The checkpoint was written by another version; delete it to start anew.")
        self.adaptation.load_state(state)
        self.history.values.copy_(history)
        torch.set_rng_state(rng)
        checkpoint.use_threads(threads)
        self._looked = step
        return step

    def _keep(self, step: int, interrupt: checkpoint.HeldInterrupt) -> None:
        """Write a checkpoint if it is time; then end as a signal that was held back wants it.

        Every process calls it after the same iterations: they stop together.
        """
        run_dir, processes = self.context.run_dir, self.context.processes
        if run_dir is None:
            return
        pressed = torch.tensor(int(interrupt.pressed is not None), device=processes.device)
        stop = bool(pressed) if processes.count == 1 else int(processes.sum(pressed)) > 0
        last = step + 1 == self.adaptation.settings.steps
        if stop or last or (step + 1) % checkpoint.EVERY == 0:
            self._write(step + 1)
        if stop:
            path = checkpoint.checkpoint_path(run_dir)
            interrupt.end(
                f"Stopped after iteration {step + 1}; `{path}` continues it.", processes.count == 1
            )

    def _write(self, next_step: int) -> None:
        """Write a checkpoint, if the run has a folder."""
        run_dir = self.context.run_dir
        if run_dir is None:
            return
        self.adaptation.share_tints()
        trained = gathered(self.adaptation.state(), self.context.writes, checkpoint.set_aside)
        if self.context.writes:
            state = {**trained, "history": self.history.values, "rng": torch.get_rng_state()}
            path = checkpoint.checkpoint_path(run_dir)
            checkpoint.write_checkpoint(path, state, self.identity, next_step)

    @property
    def identity(self) -> Identity:
        """Of the run in the folder."""
        assert self.context.identity is not None  # `train` sees to it
        return self.context.identity

    def _bar(self, start: int) -> "tqdm[Any]":
        return tqdm(
            desc="Tinting",
            total=self.adaptation.settings.steps,
            initial=start,
            disable=not self.context.shows_progress,
            dynamic_ncols=True,
        )


def _of_task(task: str, batches: Iterator[Any]) -> Iterator[Any]:
    with of_task(task):
        yield from batches
