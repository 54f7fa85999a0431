"""FusionBench's ResNet model pool and image classification task pool over `mini.resnet`."""

from __future__ import annotations

from fusion_bench.modelpool import ResNetForImageClassificationPool
from omegaconf import OmegaConf

from fusion_tinting.fusionbench.taskpools.image_classification import TintedImageClassificationTaskPool

from . import resnet
from .once import ZOO_OPTIONS, inside
from .pools import register_tasks


class MiniResNetPool(ResNetForImageClassificationPool):
    """A `ResNetForImageClassificationPool` whose models are folders that are built when missing.

    Args:
        models: model name -> folder (``pretrained`` or a task), alone or as `config_path`.
        zoo_seed, recipe: as `resnet.build` takes them.
    """

    _config_mapping = ResNetForImageClassificationPool._config_mapping | ZOO_OPTIONS

    def __init__(self, models, *, zoo_seed=0, recipe="resnet-mini_3", **kwargs):
        folder = resnet.build(zoo_seed, recipe)
        models = OmegaConf.to_container(OmegaConf.create(models))
        for name, model in models.items():
            if isinstance(model, str):
                models[name] = inside(folder, model)
            else:
                model["config_path"] = inside(folder, model["config_path"])
        super().__init__(OmegaConf.create(models), **kwargs)
        self.zoo_seed, self.recipe = zoo_seed, recipe


class MiniResNetTaskPool(TintedImageClassificationTaskPool):
    """Evaluates on the tasks of `mini.resnet`; it takes the same two options beside the task pool's own."""

    _config_mapping = TintedImageClassificationTaskPool._config_mapping | ZOO_OPTIONS

    def __init__(
        self, test_datasets, *, processor="pretrained", zoo_seed=0, recipe="resnet-mini_3", **kwargs
    ):
        processor = inside(resnet.build(zoo_seed, recipe), processor)
        super().__init__(test_datasets, processor=processor, **kwargs)
        self.zoo_seed, self.recipe = zoo_seed, recipe


register_tasks()  # whose class names the task pool asks FusionBench for
