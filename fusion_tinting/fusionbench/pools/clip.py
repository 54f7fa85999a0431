"""CLIP's vision towers with zero-shot heads: `CLIPVisionModelPool`."""

from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from torch import nn

from fusion_tinting.families import clip
from fusion_tinting.fusionbench.pools import PoolFamily, stock_taskpool
from fusion_tinting.fusionbench.taskpools.clip import TintedCLIPVisionModelTaskPool as TintedTaskPool
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.unlabeled import Unlabeled


class ClipPool(PoolFamily):
    """The experts share the pre-trained model's visual projection; heads are its folded zero-shot heads."""

    model_class = clip.TintedCLIP

    def check(self) -> None:
        """Refuse tasks whose class names FusionBench does not know.

        Raises:
            ValueError: naming the task.
        """
        for task in self.tasks:
            try:
                get_classnames_and_templates(task)
            except ValueError as error:
                raise ValueError(
                    f"No class names are known for the task `{task}`, so it has no zero-shot head. "
                    "Register them in `CLIPTemplateFactory._dataset_mapping`."
                ) from error

    def check_taskpool(self, taskpool) -> None:
        """Refuse the stock CLIP task pool.

        Raises:
            ValueError: naming ours.
        """
        if isinstance(taskpool, CLIPVisionModelTaskPool) and not isinstance(taskpool, TintedTaskPool):
            raise stock_taskpool(taskpool, TintedTaskPool, "zero-shot", "clip-vit-b32_TA8")

    def load(self) -> None:
        """Load a whole CLIP for its projection and text tower, which makes the heads."""
        self._processor = self.pool.load_processor()
        clip_model = self.pool.load_clip_model(PRETRAINED).eval()
        projection = clip_model.visual_projection
        self.pretrained = clip.CLIPImageEncoder(self.pool.load_model(PRETRAINED), projection)
        self.experts = LoadedExperts(
            self.tasks, lambda task: clip.CLIPImageEncoder(self.pool.load_model(task), projection)
        )
        self.heads = {task: self._zero_shot_head(clip_model, task) for task in self.tasks}
        self.tensor_names = clip.names_on_disk(self.pretrained)

    def unlabeled(self, task: str, split: str) -> Unlabeled:
        """A task's images, preprocessed as CLIP wants them.

        Raises:
            ValueError: an empty split.
        """
        dataset = self.dataset(task, split)
        images = ImageClassificationDataset(dataset, self._processor)
        version = clip.content_version(dataset, self._processor)
        return Unlabeled(images, num_workers=self.num_workers, version=version)

    def _zero_shot_head(self, clip_model, task: str) -> nn.Linear:
        """The folded head from FusionBench's class names and templates of a task."""
        names, templates = get_classnames_and_templates(task)
        weights = clip.zero_shot_weights(clip_model, self._processor, names, templates)
        return clip.folded_head(weights, clip_model.logit_scale.detach().exp())
