"""An image classification task pool that evaluates a tinted model with baselines and a closing table."""

from collections.abc import Mapping

from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes

from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.images import ImagesInMemory
from fusion_tinting.run.tinted_model import TintedModel


class TintedImageClassificationTaskPool(TintedEvaluation, ImagesInMemory, ImageClassificationTaskPool):
    """FusionBench's `ImageClassificationTaskPool` for tinted and for plain models.

    The stock class scores a tinted model rightly too, by its head switch; this one adds the baselines.

    Args:
        *args, **kwargs: as `TintedEvaluation`, `ImagesInMemory` and the stock class.
    """

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
