"""CLIP's vision towers with zero-shot heads: `CLIPVisionModelPool`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

from fusion_bench.modelpool import CLIPVisionModelPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from torch import nn
from transformers import AutoConfig

from fusion_tinting.families import images
from fusion_tinting.families.class_names import TEMPLATE
from fusion_tinting.families.clip import require_tower
from fusion_tinting.families.family import Classes, Models
from fusion_tinting.families.loading import require_complete
from fusion_tinting.fusionbench.own_classes import OwnClasses
from fusion_tinting.fusionbench.pools import PoolFamily, loaded, model_id
from fusion_tinting.method.task_vectors import PRETRAINED


class NamedCLIPVisionModelPool(OwnClasses, CLIPVisionModelPool):
    """FusionBench's pool, with the class names of tasks that FusionBench does not know.

    Args:
        class_names, templates: as `OwnClasses`.
        *args, **kwargs: as the stock class.
    """


class ClipPool(PoolFamily):
    """The heads are zero-shot heads, of FusionBench's class names and templates."""

    name: ClassVar[str] = "clip"

    def models(self) -> Models:
        """Return what the pool loads: towers, and for `_pretrained_` a whole CLIP."""
        classes = {task: Classes(*_class_names(task)) for task in self.tasks}
        return replace(
            super().models(), reader=self.reader(self.pool.load_processor), load=self._load, classes=classes
        )

    def check(self) -> None:
        """Refuse a base without text tower, and experts of another tower or that read images otherwise.

        Raises:
            ValueError: naming the model.
        """
        super().check()
        self._require_towers()
        paths = {task: model_id(self.pool, task) for task in self.tasks}
        images.require_read_alike(self.family.models.reader, paths)

    def _require_towers(self) -> None:
        path = self.pool.get_model_config(PRETRAINED)
        if not isinstance(path, str):  # another function may load it
            return
        config = loaded(AutoConfig.from_pretrained, path, f"`{path}` (the model `{PRETRAINED}`)")
        if config.model_type != "clip":
            raise ValueError(
                f"The base `{path}` is of the architecture `{config.model_type}`, which has no text "
                "tower to make heads of. Expected a whole CLIP (`clip`)."
            )
        for task in self.tasks:
            if isinstance(expert := self.pool.get_model_config(task), str):
                require_tower(expert, config.vision_config)

    def _load(self, name: str) -> nn.Module:
        tower = self._complete(name, self.pool.load_model)
        if name != PRETRAINED:
            return tower
        whole = self._complete(name, self.pool.load_clip_model)
        whole.vision_model = tower  # of the class that the experts have, whatever transformers' release
        return whole

    def _complete(self, name: str, load: Callable) -> nn.Module:
        """Return a model that lacks no tensor: heads of a base without its text tower would be random."""
        path = self.pool.get_model_config(name)
        if not isinstance(path, str):  # another function may load it
            return self.opened(name, load)
        model, info = self.opened(name, partial(load, output_loading_info=True))
        require_complete(path, model, info["missing_keys"])
        return model


def _class_names(task: str) -> tuple:
    try:
        return get_classnames_and_templates(task)
    except ValueError as error:
        raise ValueError(
            f"No class names are known for the task `{task}`, so it has no zero-shot head. Give them, in "
            f"the order of the labels: `+taskpool.class_names.{task}=[cat, dog]`, and `templates` where "
            f"`{TEMPLATE}` will not do; or in the model pool, as a `{__name__}."
            f"{NamedCLIPVisionModelPool.__name__}`."
        ) from error
