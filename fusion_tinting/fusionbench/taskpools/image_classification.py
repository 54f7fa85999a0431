"""An image classification task pool that evaluates a tinted model with baselines and a closing table."""

import torch
from fusion_bench.taskpool.image_classification import ImageClassificationTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes

from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.unlabeled import InMemory


class TintedImageClassificationTaskPool(TintedEvaluation, ImageClassificationTaskPool):
    """FusionBench's `ImageClassificationTaskPool` for tinted and for plain models.

    The stock class scores a tinted model rightly too, by its head switch; this one adds the baselines.

    Args:
        in_memory: whether to keep preprocessed inputs in memory between passes; for small pools with
            `dataloader_kwargs.num_workers=0`.
        *args, **kwargs: as `TintedEvaluation` and the stock class.
    """

    def __init__(self, *args, in_memory: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.in_memory = in_memory

    def setup(self) -> None:
        """As the stock class, once."""
        super().setup()
        self._is_setup = True
        if self.in_memory:
            for name, dataset in self.test_datasets.items():
                loader = torch.utils.data.DataLoader(InMemory(dataset), **self.dataloader_kwargs)
                self.test_dataloaders[name] = self.fabric.setup_dataloaders(loader)

    def score(self, model: TintedModel, task: str) -> dict:
        """Accuracy and loss of one task."""
        model.set_task(task)
        loader, classes = self.test_dataloaders[task], get_num_classes(task)
        return self._evaluate(model, loader, classes, task_name=task)
