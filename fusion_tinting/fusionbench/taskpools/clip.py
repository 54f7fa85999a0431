"""A CLIP task pool that evaluates a tinted model task by task, and any other model as before."""

import torch
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes
from torch import Tensor, nn

from fusion_tinting.families.clip import TintedCLIP
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.unlabeled import InMemory


class TintedCLIPVisionModelTaskPool(TintedEvaluation, CLIPVisionModelTaskPool):
    """FusionBench's `CLIPVisionModelTaskPool` for tinted and for plain models.

    Args:
        in_memory: whether to keep preprocessed inputs in memory between passes; for small pools
            with `dataloader_kwargs.num_workers=0`.
        *args, **kwargs: as `TintedEvaluation` and the stock class.
    """

    def __init__(self, *args, in_memory: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.in_memory = in_memory

    def setup(self) -> None:
        """As the stock class; called on first use."""
        super().setup()
        if self.in_memory:
            for name, dataset in self.test_datasets.items():
                loader = torch.utils.data.DataLoader(InMemory(dataset), **self._dataloader_kwargs)
                self.test_dataloaders[name] = self.fabric.setup_dataloaders(loader)

    def score(self, model: TintedCLIP, task: str) -> dict:
        """Accuracy and loss of one task."""
        loader, classes = self.test_dataloaders[task], get_num_classes(task)
        return super()._evaluate(_TaskClassifier(model, task), loader, classes, task_name=task)

    def _evaluate(self, classifier, test_loader, num_classes, task_name=None) -> dict:
        # Here and not in `on_task_evaluation_begin`, after which the stock class sets the zero-shot head.
        model = classifier.clip_model.vision_model
        if isinstance(model, TintedCLIP):
            return self.score(model, task_name)
        return super()._evaluate(classifier, test_loader, num_classes, task_name=task_name)


class _TaskClassifier(nn.Module):
    """One task of a tinted model, called as FusionBench calls its `HFCLIPClassifier`."""

    def __init__(self, model: TintedCLIP, task: str):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor, **_) -> dict[str, Tensor]:
        return {"logits": self.model(images, self.task)}
