"""A CLIP task pool that evaluates a tinted model task by task, and any other model as before."""

from collections.abc import Mapping
from typing import Any, ClassVar

from fusion_bench import instantiate
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_num_classes
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, CLIPProcessor

from fusion_tinting.families.clip import TintedCLIP
from fusion_tinting.fusionbench.own_classes import OwnClasses
from fusion_tinting.fusionbench.pools import PoolFamily, loaded, named_in
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.images import ImagesInMemory


class TintedCLIPVisionModelTaskPool(OwnClasses, ImagesInMemory, TintedEvaluation, CLIPVisionModelTaskPool):
    """FusionBench's `CLIPVisionModelTaskPool` for tinted and for plain models.

    Args:
        *args, **kwargs: as `OwnClasses`, `TintedEvaluation`, `ImagesInMemory` and the stock class.
    """

    scored: ClassVar[str] = "clip"

    def check(self, models: PoolFamily) -> None:
        """Load test sets and processor, and find out whether the base's text tower can be reached."""
        super().check(models)
        processor, base = self._processor, named_in(self._clip_model)
        if isinstance(processor, str):
            self._processor = loaded(CLIPProcessor.from_pretrained, processor, f"`{processor}`")
        elif isinstance(processor, Mapping):
            called = f"`{named_in(processor)}` (the task pool's `processor`)"
            self._processor = loaded(instantiate, processor, called)
        if base is not None:
            loaded(AutoConfig.from_pretrained, base, f"`{base}` (the task pool's `clip_model`)")

    def score(self, model: TintedCLIP, task: str) -> dict:
        """Accuracy and loss of one task."""
        loader, classes = self.test_dataloaders[task], get_num_classes(task)
        return super()._evaluate(_TaskClassifier(model, task), loader, classes, task_name=task)

    def _evaluate(
        self, classifier: nn.Module, test_loader: DataLoader, num_classes: int, task_name: str | None = None
    ) -> dict:
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

    def forward(self, images: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"logits": self.model(images, self.task)}
