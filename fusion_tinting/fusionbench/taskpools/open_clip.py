"""An OpenCLIP task pool that evaluates a tinted model task by task, and any other model as before."""

from typing import Any, ClassVar

from fusion_bench.taskpool import OpenCLIPVisionModelTaskPool
from torch import nn
from torch.utils.data import DataLoader

from fusion_tinting.families.open_clip import TintedOpenCLIP
from fusion_tinting.families.open_clip_files import load_head
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.images import TestImages
from fusion_tinting.run.tinted_model import OneTask


class TintedOpenCLIPVisionModelTaskPool(TestImages, TintedEvaluation, OpenCLIPVisionModelTaskPool):
    """FusionBench's `OpenCLIPVisionModelTaskPool` for tinted and for plain models.

    Args:
        trust_pickles: whether heads that are pickles, as released, may be loaded.
        model_dir: of the configuration's interpolations alone.
        *args, **kwargs: as `TintedEvaluation` and the stock class.
    """

    scored: ClassVar[str] = "open_clip"

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
        self._load_heads()
        super().setup()

    def check(self, models: PoolFamily) -> None:
        """Load heads and test sets, and find out whether every task can be scored."""
        self._load_heads()
        super().check(models)

    def classes(self, task: str) -> int:
        """Return the number of classes that a task's head tells apart."""
        return len(self._classifier_heads[task].weight)

    def _load_heads(self) -> None:
        heads = self._classifier_heads
        headless = [task for task in self.tasks if task not in heads]
        if headless:
            raise ValueError(f"The task pool has no `classification_heads` for {headless}.")
        self._classifier_heads = {
            task: head if isinstance(head, nn.Module) else load_head(head, self.trust_pickles)
            for task, head in heads.items()
            if task in self.tasks
        }

    def score(self, model: TintedOpenCLIP, task: str) -> dict:
        """Accuracy and loss of one task."""
        loader, classes = self.test_dataloaders[task], self.classes(task)
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
