"""An OpenCLIP task pool that evaluates a tinted model task by task, and any other model as before."""

from typing import Any

from fusion_bench.taskpool import OpenCLIPVisionModelTaskPool
from torch import nn
from torch.utils.data import DataLoader

from fusion_tinting.families.open_clip import TintedOpenCLIP
from fusion_tinting.families.open_clip_files import load_head
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.run.tinted_model import OneTask


class TintedOpenCLIPVisionModelTaskPool(TintedEvaluation, OpenCLIPVisionModelTaskPool):
    """FusionBench's `OpenCLIPVisionModelTaskPool` for tinted and for plain models.

    Args:
        trust_pickles: whether heads that are pickles, as released, may be loaded.
        model_dir: of the configuration's interpolations alone.
        *args, **kwargs: as `TintedEvaluation` and the stock class.
    """

    def __init__(
        self, *args: Any, trust_pickles: bool = False, model_dir: str | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.trust_pickles, self.model_dir = trust_pickles, model_dir

    def setup(self) -> None:
        """As the stock class, reading heads as our model pool does; called on first use.

        Raises:
            ValueError: a task without head, or as `families.open_clip_files.load_head`.
        """
        heads = self._classifier_heads
        headless = [task for task in self.tasks if task not in heads]
        if headless:
            raise ValueError(f"The task pool has no `classification_heads` for {headless}.")
        self._classifier_heads = {task: load_head(heads[task], self.trust_pickles) for task in self.tasks}
        super().setup()

    def check(self, models: PoolFamily) -> None:
        """Find out whether every task can be scored.

        Raises:
            ValueError: a test set without images or labels, or with more classes than its head.
        """
        if not self._is_setup:
            self.setup()
        for task, images in self.test_datasets.items():
            dataset, classes = images.dataset, len(self.classifier_heads[task].weight)
            row = dataset[0] if len(dataset) else {}
            if lacking := [column for column in ("image", "label") if column not in row]:
                raise ValueError(f"The test set of `{task}` lacks {lacking}: accuracy cannot be computed.")
            label = getattr(dataset, "features", {}).get("label")
            labels = getattr(label, "num_classes", 0)
            if labels > classes:
                raise ValueError(
                    f"The test set of `{task}` has {labels} classes; its head tells only {classes} apart."
                )

    def score(self, model: TintedOpenCLIP, task: str) -> dict:
        """Accuracy and loss of one task."""
        loader, classes = self.test_dataloaders[task], len(self.classifier_heads[task].weight)
        return super()._evaluate(OneTask(model, task), loader, classes, task_name=task)

    def _evaluate(
        self, classifier: nn.Module, test_loader: DataLoader, num_classes: int, task_name: str
    ) -> dict:
        model = getattr(
            classifier.image_encoder, "module", classifier.image_encoder
        )  # out of Fabric's wrapper
        if isinstance(model, TintedOpenCLIP):
            return self.score(model, task_name)
        return super()._evaluate(classifier, test_loader, num_classes, task_name=task_name)
