"""Studies: methods that adapt several times, score the results, and write a table and a figure."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from fusion_bench import BaseModelPool
from matplotlib.figure import Figure
from torch import Tensor

from fusion_tinting.fusionbench.algorithm import ModelTinting
from fusion_tinting.fusionbench.closing import show_last
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.method.settings import Settings
from fusion_tinting.reporting import studies as report
from fusion_tinting.reporting.tables import Metric, Table, protocol
from fusion_tinting.run.manifest import installed_versions
from fusion_tinting.run.tinted_model import TintedModel
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

    def __init__(self, *, artifact: str | None = None, **options: Any):
        if artifact is not None:
            raise ValueError(
                f"`method.artifact={artifact}` has no effect in the study {self.name}, which adapts. To "
                "continue a study that was stopped, name its folder in `method.run_dir`."
            )
        super().__init__(**options)

    def run(self, modelpool: BaseModelPool) -> TintedModel:
        """Do the study and return one of its tinted models.

        Args:
            modelpool: the pool of the models that are merged.

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
        """Adapt, score, `publish`, and return one of the tinted models.

        Args:
            family: the models, loaded.
            unlabeled: task -> the inputs to adapt on.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Refuse tasks with which the study makes no sense, before anything is loaded.

        Raises:
            ValueError: the study makes no sense with these tasks, and why.
        """

    def _prepare(self) -> None:
        """Make the task pool ready: FusionBench's load their test data when they first evaluate."""
        if getattr(self._taskpool, "_is_setup", True) is False:
            self._taskpool.setup()

    @property
    def tasks(self) -> list[str]:
        """The tasks that are scored."""
        return self._taskpool.tasks

    @property
    def init(self) -> float:
        """The λ that adaptations start from, and that Task Arithmetic has.

        Raises:
            ValueError: several, or an earlier run's.
        """
        init = self.settings.get("init", Settings.init)
        if not isinstance(init, (int, float)):
            raise ValueError(
                f"The study {self.name} merges with one λ for all: `method.init` must be one number. "
                f"Found {init!r}."
            )
        return init

    def folder(self, part: str) -> Path:
        """Return the folder of one adaptation of the study.

        Args:
            part: which adaptation, such as the name of a layer.
        """
        return self._run_dir(self.name) / part.replace(":", "_").replace("/", "_")

    def scores(self, model: TintedModel, tasks: Sequence[str] | None = None) -> Scores:
        """Return the scores of a model.

        Args:
            model: the model.
            tasks: which tasks to score (default: all).
        """
        pool, model = self._taskpool, self.fabric.to_device(model).eval()
        return {task: pool.score(model, task)[pool.metric(task).key] for task in tasks or self.tasks}

    def expert_scores(self, model: TintedModel) -> Scores:
        """Return the score of every expert on its own task.

        Args:
            model: a merge of these experts.
        """
        return {task: self.scores(model.remerged(task), [task])[task] for task in self.tasks}

    def scaled(self, scores: Scores) -> dict[str, float]:
        """Return scores in the unit of the tables, such as percent.

        Args:
            scores: as the task pool reports them.
        """
        return {task: self._taskpool.metric(task).scale * value for task, value in scores.items()}

    @property
    def metric(self) -> Metric | None:
        """The metric of all tasks, if they share one."""
        metrics = {self._taskpool.metric(task) for task in self.tasks}
        return metrics.pop() if len(metrics) == 1 else None

    def summary(self, scores: Scores, experts: Scores) -> float:
        """Return one number, in `unit`: the mean score, or the share of the experts that is kept.

        Args:
            scores: the scores of a model.
            experts: the scores of the experts.
        """
        if self.metric is None:
            return self.share(scores, experts)
        return sum(self.scaled(scores).values()) / len(scores)

    @property
    def unit(self) -> str:
        """The unit of `summary`."""
        return "share of the experts %" if self.metric is None else f"{self.metric.title}, average"

    def share(self, scores: Scores, experts: Scores) -> float:
        """Return the share of the experts that is kept, in percent: the mean over the tasks.

        Args:
            scores: the scores of a model.
            experts: the scores of the experts.
        """
        return sum(self.shares(scores, experts).values()) / len(scores)

    def shares(self, scores: Scores, experts: Scores) -> dict[str, float]:
        """Return the share of its expert that each task keeps, in percent.

        Args:
            scores: the scores of a model.
            experts: the scores of the experts.
        """
        return {t: self._taskpool.metric(t).share(value, experts[t]) for t, value in scores.items()}

    def publish(
        self, content: Mapping, tables: Sequence[Table], figure: Figure, details: Sequence[Table] = ()
    ) -> None:
        """Write `<name>.json`, `.md` and `.png` into the log folder, and show the tables at the end.

        Args:
            content: what the JSON holds, besides split, settings and versions.
            tables: the tables.
            figure: the figure.
            details: tables for the Markdown alone, too wide for a terminal.
        """
        if not self.fabric.is_global_zero:
            return
        about = {"study": self.name, "split": self.adapt_split, "settings": self._settings_as_given()}
        path = self._log_folder / self.name
        content = {**about, **content, "versions": installed_versions()}
        report.write(path, content, [*tables, *details], figure)
        log.info(f"Tables and figure of the study: {path}.md, {path}.png.")
        for table in reversed(tables):
            show_last(table)

    def _settings_as_given(self) -> dict[str, Any]:
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in self.settings.items()}

    @property
    def protocol(self) -> str:
        """The sentence that says what was adapted on and what was scored on."""
        return protocol(self.adapt_split)


def coefficients_of(model: TintedModel) -> Tensor:
    """Return λ of every merged tensor, (L, K).

    Args:
        model: of K tasks, with L merged tensors.
    """
    return torch.stack(list(model.coefficients.values()))
