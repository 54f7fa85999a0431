"""FusionBench's CLIP model pool and task pool over a zoo: names become folders, the rest is stock."""

from __future__ import annotations

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from omegaconf import DictConfig, OmegaConf

from fusion_tinting.fusionbench.taskpools.clip import TintedCLIPVisionModelTaskPool

from . import zoo
from .once import ZOO_OPTIONS, inside
from .tasks import TASKS


class MiniCLIPModelPool(CLIPVisionModelPool):
    """A `CLIPVisionModelPool` whose models and processor are folders of a zoo, built when missing.

    Args:
        models: Model name -> folder inside the zoo (``pretrained`` or a task), or anything that the
            stock pool takes.
        processor: Folder inside the zoo.
        zoo_seed: The zoo's seed.
        recipe: The zoo's recipe, one of `recipe.RECIPES`.
    """

    _config_mapping = CLIPVisionModelPool._config_mapping | ZOO_OPTIONS

    def __init__(self, models, *, processor="pretrained", zoo_seed=0, recipe="clip-mini_8", **kwargs):
        folder = zoo.build(zoo_seed, recipe=recipe)
        models = {name: inside(folder, model) for name, model in models.items()}
        super().__init__(OmegaConf.create(models), processor=inside(folder, processor), **kwargs)
        self.zoo_seed, self.recipe = zoo_seed, recipe


class MiniCLIPTaskPool(TintedCLIPVisionModelTaskPool):
    """Evaluates on a zoo's tasks; beside the task pool's own options it takes the zoo's two."""

    _config_mapping = TintedCLIPVisionModelTaskPool._config_mapping | ZOO_OPTIONS

    def __init__(
        self,
        test_datasets: DictConfig,
        *,
        processor="pretrained",
        clip_model="pretrained",
        zoo_seed=0,
        recipe="clip-mini_8",
        **kwargs,
    ):
        folder = zoo.build(zoo_seed, recipe=recipe)
        super().__init__(
            test_datasets,
            processor=inside(folder, processor),
            clip_model=inside(folder, clip_model),
            **kwargs,
        )
        self.zoo_seed, self.recipe = zoo_seed, recipe


def register_tasks() -> None:
    """Tell FusionBench the tasks' class names and caption templates."""
    for task in TASKS.values():
        # Straight into the table: FusionBench 0.2.33's `register_dataset` stores no templates.
        CLIPTemplateFactory._dataset_mapping[task.name] = {
            "classnames": list(task.classnames),
            "templates": [template.format for template in task.templates],
        }


register_tasks()
