"""NYUv2's three tasks, for tinted and for plain encoders."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from fusion_bench import RuntimeConstants, instantiate
from fusion_bench.metrics.nyuv2 import DepthMetric, NormalMetric, SegmentationMetric
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric as Measure

from fusion_tinting.errors import unknown
from fusion_tinting.families.nyuv2_scenes import Scenes
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.pools.nyuv2 import decoder_head
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.images import require_whole
from fusion_tinting.fusionbench.taskpools.scored import ScoredTaskPool
from fusion_tinting.reporting.tables import Metric
from fusion_tinting.run.tinted_model import TintedModel

METRIC = {
    "segmentation": Metric("mIoU", "mIoU %"),
    "depth": Metric("abs_err", "absolute error × 100", better="lower"),
    "normal": Metric("mean", "mean angle °", scale=1, better="lower"),
}
"""Task -> what counts, shown as in the papers' tables."""


class NYUv2Evaluation(ScoredTaskPool):
    """FusionBench's metrics of encoders, without Lightning's trainer; each with the experts' decoders.

    Args:
        test_datasets: task -> its `Scenes`, with targets.
        dataloader_kwargs: of each task's loader.
        data_dir: for the data sets' configurations to refer to.
    """

    _config_mapping = ScoredTaskPool._config_mapping | {
        "data_dir": "data_dir",
        "_dataloader_kwargs": "dataloader_kwargs",
    }

    def __init__(
        self,
        test_datasets: Mapping,
        *,
        dataloader_kwargs: Mapping,
        data_dir: str | None = None,
        **kwargs: Any,
    ):
        for task in test_datasets:
            if task not in METRIC:
                raise unknown("task", task, METRIC)
        super().__init__(test_datasets, **kwargs)
        self._dataloader_kwargs, self.data_dir = dataloader_kwargs, data_dir

    def load_test_dataset(self, task: str) -> Scenes:
        """Return the scenes that a task is evaluated on.

        Raises:
            ValueError: no images, or no targets for them.
        """
        return instantiate(self._test_datasets[task])

    def evaluate(self, model: nn.Module, *args: Any, **kwargs: Any) -> dict:
        """Return the report of a model, once it is where it runs."""
        return super().evaluate(self.fabric.to_device(model).eval(), *args, **kwargs)

    def score(self, encoder: nn.Module, task: str) -> dict:
        """Return every metric of a task for an encoder with the expert's decoder."""
        head = self.fabric.to_device(decoder_head(self._program.modelpool, task))
        return self.measure(lambda images: head(encoder(images)), task)

    @torch.no_grad()
    def measure(self, model: Callable[[Tensor], Tensor], task: str) -> dict:
        """Return every metric of FusionBench for one task; `model` maps images to outputs (B, C, H, W)."""
        # Every process sees all of it: metrics made of medians and class counts want no average of parts.
        loader = DataLoader(self.load_test_dataset(task), **self._dataloader_kwargs)
        measured = None
        for images, target in itertools.islice(loader, 1 if RuntimeConstants.debug else None):
            images, target = self.fabric.to_device((images, target))
            outputs = model(images).float()
            measured = measured or measure_of(task, outputs.shape[1]).to(outputs.device)
            measured.update(outputs, target)
        values = map(float, measured.compute())
        return dict(zip(measured.metric_names, values, strict=True))


class TintedNYUv2TaskPool(TintedEvaluation, NYUv2Evaluation):
    """mIoU and pixel accuracy; absolute and relative error; angles: each task with its tint."""

    scored: ClassVar[str] = "dense"

    def check(self, models: PoolFamily) -> None:
        """Refuse targets that are not there, and loaders that leave some out."""
        require_whole(self._dataloader_kwargs)
        for task in self.tasks:
            self.load_test_dataset(task)

    def score(self, model: nn.Module, task: str) -> dict:
        """Return every metric of a task, of a plain encoder with the expert's decoder."""
        if isinstance(model, TintedModel):
            return self.measure(lambda images: model(images, task), task)
        return NYUv2Evaluation.score(self, model, task)

    def metric(self, task: str) -> Metric:
        """mIoU, absolute error or mean angle."""
        return METRIC[task]


class _Segmentation(SegmentationMetric):
    """A class that neither targets nor predictions have counts for nothing; the stock mean is NaN then."""

    def compute(self) -> list:
        counts = self.record.float()
        right = counts.diag()
        return [(right / (counts.sum(1) + counts.sum(0) - right)).nanmean(), right.sum() / counts.sum()]


def measure_of(task: str, channels: int) -> Measure:
    """FusionBench's metrics of a task; pixels that are not valid are left out, as there."""
    if task == "segmentation":
        return _Segmentation(channels)
    return {"depth": DepthMetric, "normal": NormalMetric}[task]()
