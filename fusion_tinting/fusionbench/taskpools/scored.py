"""What FusionBench's task pools bring to `TintedEvaluation`, for models that it has no such pool for."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench import BaseTaskPool, LightningFabricMixin
from fusion_bench.utils import count_parameters
from torch import nn

from fusion_tinting.run.files import write_json


class ScoredTaskPool(LightningFabricMixin, BaseTaskPool):
    """Scores every task of a model, and reports in the layout of FusionBench's own task pools.

    Args:
        test_datasets: task -> data set.
    """

    _config_mapping = BaseTaskPool._config_mapping | {"_test_datasets": "test_datasets"}

    def __init__(self, test_datasets: Mapping, **kwargs: Any):
        super().__init__(**kwargs)
        self._test_datasets = test_datasets

    def score(self, model: nn.Module, task: str) -> dict:
        """Metric -> value of one task."""
        raise NotImplementedError

    def summary(self, scores: Mapping[str, Mapping[str, float]]) -> dict:
        """Return what the report says of all tasks together."""
        return {}

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict:
        """Return `model_info`, and task -> metric -> value; also written to the log folder."""
        trainable, every = count_parameters(model)
        info = {
            "trainable_params": trainable,
            "all_params": every,
            "trainable_percentage": trainable / every,
        }
        scores = {task: self.score(model, task) for task in self._test_datasets}
        report = {"model_info": info, **scores, **self.summary(scores)}
        if self.log_dir is not None and self.fabric.is_global_zero:
            write_json(_unused(Path(self.log_dir)), report)
        return report


def _unused(folder: Path) -> Path:
    names = itertools.chain(["report.json"], (f"report_{count}.json" for count in itertools.count(1)))
    return next(folder / name for name in names if not (folder / name).exists())
