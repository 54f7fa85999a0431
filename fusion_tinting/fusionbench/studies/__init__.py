"""Studies: methods that adapt several times, score what comes out, and write a table and a figure."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from fusion_bench import BaseModelPool
from matplotlib.figure import Figure
from torch import Tensor

from fusion_tinting.fusionbench.algorithm import ModelTinting
from fusion_tinting.fusionbench.closing import show_last
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.reporting import studies as report
from fusion_tinting.reporting.studies import Grid
from fusion_tinting.reporting.tables import Metric
from fusion_tinting.run.artifact import installed_versions
from fusion_tinting.run.unlabeled import Unlabeled

log = logging.getLogger(__name__)

Scores = Mapping[str, float]
"""Task -> the score that counts, as its task pool reports it."""


class Study(ModelTinting):
    """Base of the studies. A subclass sets `name` and writes `study`.

    Every adaptation has a folder of its own in `run_dir` (default: `<name>` in the log folder), so that a
    study that was stopped continues when it is started again with that `run_dir`. Labels are read for the
    figures alone: nothing is chosen by them.

    Args:
        artifact: must be None, for a study adapts.
        **options: as `ModelTinting`.

    Raises:
        ValueError: bad settings, or an `artifact`, before anything is loaded.
    """

    name: ClassVar[str]

    def __init__(self, *, artifact: str | None = None, **options):
        if artifact is not None:
            raise ValueError(
                f"`method.artifact={artifact}` has no effect in the study {self.name}, which adapts. To "
                "continue a study that was stopped, name its folder in `method.run_dir`."
            )
        super().__init__(**options)

    def run(self, modelpool: BaseModelPool) -> TintedModel:
        """Do the study; one of its tinted models is returned.

        Raises:
            ValueError: no task pool of fusion_tinting; or as `ModelTinting.run`.
        """
        if not isinstance(self._taskpool, TintedEvaluation):
            raise ValueError(
                f"The study {self.name} scores tinted models, for which it needs a task pool of "
                "fusion_tinting, such as `taskpool=clip-vit-b32_TA8`. Found "
                f"{'none' if self._taskpool is None else type(self._taskpool).__name__}."
            )
        self.check()
        family = self._checked(modelpool)
        self._prepare()
        family.load()
        return self.study(family, self._unlabeled(family))

    def study(self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]) -> TintedModel:
        """Adapt, score and `publish`; called with the models loaded."""
        raise NotImplementedError

    def check(self) -> None:
        """See whether the study makes sense with these tasks, before anything is loaded.

        Raises:
            ValueError: saying why it does not.
        """

    def _prepare(self) -> None:
        """Make the task pool ready: FusionBench's load their test data when they first evaluate."""
        if getattr(self._taskpool, "_is_setup", True) is False:
            self._taskpool.setup()

    @property
    def tasks(self) -> list[str]:
        """The tasks that are scored."""
        return self._taskpool.tasks

    def folder(self, part: str) -> Path:
        """Where one adaptation of the study is kept."""
        return self._run_dir(self.name) / part.replace(":", "_").replace("/", "_")

    def scores(self, model: TintedModel, tasks: Sequence[str] | None = None) -> Scores:
        """The score of every task, or of these."""
        pool, model = self._taskpool, self.fabric.to_device(model).eval()
        return {task: pool.score(model, task)[pool.metric(task).key] for task in tasks or self.tasks}

    def shown(self, scores: Scores) -> dict[str, float]:
        """In the unit of the tables, such as per cent."""
        return {task: self._taskpool.metric(task).scale * value for task, value in scores.items()}

    @property
    def metric(self) -> Metric | None:
        """What all tasks are scored by, if it is one."""
        metrics = {self._taskpool.metric(task) for task in self.tasks}
        return metrics.pop() if len(metrics) == 1 else None

    def summary(self, scores: Scores, experts: Scores) -> float:
        """One number, in the unit that `unit` names: the mean score, or what is kept of the experts."""
        if self.metric is None:
            return self.share(scores, experts)
        return sum(self.shown(scores).values()) / len(scores)

    @property
    def unit(self) -> str:
        """What `summary` gives."""
        return "share of the experts %" if self.metric is None else f"{self.metric.title}, average"

    def share(self, scores: Scores, experts: Scores) -> float:
        """How much of the experts is kept, in per cent: the mean over the tasks."""
        return sum(self.shares(scores, experts).values()) / len(scores)

    def shares(self, scores: Scores, experts: Scores) -> dict[str, float]:
        """How much of its expert each task keeps, in per cent."""
        return {t: self._taskpool.metric(t).share(value, experts[t]) for t, value in scores.items()}

    def publish(
        self, found: Mapping, grids: Sequence[Grid], figure: Figure, details: Sequence[Grid] = ()
    ) -> None:
        """Write `<name>.json`, `.md` and `.png` into the log folder, and show the tables at the end.

        Args:
            found: for the JSON.
            grids: the tables.
            figure: the figure.
            details: tables for the Markdown alone, too wide for a terminal.
        """
        if not self.fabric.is_global_zero:
            return
        about = {"study": self.name, "split": self.adapt_split, "settings": self._settings_as_given()}
        path = self._log_folder / self.name
        found = {**about, **found, "versions": installed_versions()}
        report.write(path, found, [*grids, *details], figure)
        log.info(f"Tables and figure of the study: {path}.md, {path}.png.")
        for grid in reversed(grids):
            show_last(grid.rich())

    def _settings_as_given(self) -> dict:
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in self.settings.items()}

    @property
    def protocol(self) -> str:
        """What was adapted on and what was scored on."""
        if self.adapt_split == "test":
            return "Adapted on the unlabelled test split itself (transductive)."
        return f"Adapted on the unlabelled {self.adapt_split} split, scored on the test split (inductive)."


def coefficients_of(model: TintedModel) -> Tensor:
    """λ, shape (L, K)."""
    return torch.stack(list(model.coefficients.values()))
