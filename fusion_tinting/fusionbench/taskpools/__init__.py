"""Task pools that evaluate a tinted model task by task, and any other model as FusionBench does."""

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from fusion_tinting.fusionbench.closing import show_last
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.reporting.tables import ACCURACY, Metric, score_table
from fusion_tinting.run.files import write_json
from fusion_tinting.run.tinted_model import TintedModel


class TintedEvaluation:
    """Stands before one of FusionBench's task pools among the bases of a class.

    A plain model is evaluated by the stock class, to the same figures. A tinted model is evaluated with
    each task's own tint and head; its report keeps the stock layout, and one more key, `baselines`,
    holds the scores of the pre-trained model, of each expert on its own task and of Task
    Arithmetic at the initial λ, which the closing table shows beside it.

    Class attributes:
        scored: name of the family whose models it scores.

    Args:
        baselines: whether to evaluate those too (three more passes over the test sets).
        *args, **kwargs: as the stock class.
    """

    scored: ClassVar[str]

    def __init__(self, *args: Any, baselines: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.baselines = baselines

    @property
    def tasks(self) -> list[str]:
        """The tasks that are evaluated."""
        return list(self._test_datasets or ())

    def check(self, models: PoolFamily) -> None:
        """Find out whether every task can be scored; before a model is loaded.

        Args:
            models: the model pool's.

        Raises:
            ValueError: naming the task.
        """

    def score(self, model: TintedModel, task: str) -> dict:
        """Return what the stock class would report of one task of a tinted model: metric -> value."""
        raise NotImplementedError

    def metric(self, task: str) -> Metric:
        """Which of the reported values counts for a task."""
        return ACCURACY

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict:
        """Return the stock report of `model`; for a tinted model with `baselines`, and a closing table."""
        report = super().evaluate(model, *args, **kwargs)
        if isinstance(model, TintedModel):
            report["model_info"]["adapt_split"] = model.info.split
            if self.baselines:
                report["baselines"] = self._baselines(model)
            if self.fabric.is_global_zero:
                self._write(report)
                self._show(report, model)
        return report

    def _baselines(self, model: TintedModel) -> dict:
        """Return name -> {task: score}, of merges of the same task vectors with the original heads."""
        shared = {"pretrained": model.remerged(0.0), "task_arithmetic": model.remerged(model.start)}
        scores = {
            name: {task: self._value(baseline, task) for task in self.tasks}
            for name, baseline in shared.items()
        }
        return {**scores, "expert": {task: self._value(model.remerged(task), task) for task in self.tasks}}

    def _value(self, model: TintedModel, task: str) -> float:
        return self.score(self.fabric.to_device(model), task)[self.metric(task).key]

    def _write(self, report: dict) -> None:
        """Complete the file that the stock class has just written."""
        if self.log_dir is not None:
            written = Path(self.log_dir).glob("report*.json")
            write_json(max(written, key=lambda path: path.stat().st_mtime_ns), report)

    def _show(self, report: dict, model: TintedModel) -> None:
        """Log the scores and show the closing table."""
        metrics = {task: self.metric(task) for task in self.tasks}
        for task, metric in metrics.items():
            self.log_dict({f"test/{task}/{metric.key}": report[task][metric.key]})
        if "accuracy" in report.get("average", {}):
            self.log_dict({"test/average/accuracy": report["average"]["accuracy"]})
        for name, values in report.get("baselines", {}).items():
            self.log_dict({f"test/{task}/{name}": value for task, value in values.items()})
        show_last(score_table(report, model, metrics))
