"""An image classification task pool that evaluates a tinted model with baselines and a closing table."""

from collections.abc import Mapping
from typing import ClassVar

from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes

from fusion_tinting.fusionbench.own_classes import OwnClasses
from fusion_tinting.fusionbench.pools import PoolFamily, loaded, named_in
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.images import ImagesInMemory
from fusion_tinting.run.tinted_model import TintedModel


class TintedImageClassificationTaskPool(
    OwnClasses, ImagesInMemory, TintedEvaluation, ImageClassificationTaskPool
):
    """FusionBench's `ImageClassificationTaskPool` for tinted and for plain models.

    The stock class scores a tinted model rightly too, by its head switch; this one adds the baselines.

    Args:
        *args, **kwargs: as `OwnClasses`, `TintedEvaluation`, `ImagesInMemory` and the stock class.
    """

    scored: ClassVar[str] = "image_classification"

    def check(self, models: PoolFamily) -> None:
        """Load test sets and processor."""
        super().check(models)
        loaded(
            lambda _: self.processor, None, f"`{named_in(self._processor)}` (the task pool's `processor`)"
        )

    @property
    def loader_options(self) -> Mapping:
        """The stock class's options of its loaders."""
        return self.dataloader_kwargs

    def setup(self) -> None:
        """As the stock class, once."""
        super().setup()
        self._is_setup = True

    def score(self, model: TintedModel, task: str) -> dict:
        """Accuracy and loss of one task."""
        model.set_task(task)
        loader, classes = self.test_dataloaders[task], get_num_classes(task)
        return self._evaluate(model, loader, classes, task_name=task)
