"""Image classifiers: FusionBench's ResNet, ConvNeXt and DINOv2 pools."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from fusion_bench import BaseModelPool
from fusion_bench.modelpool import ConvNextForImageClassificationPool, ResNetForImageClassificationPool
from fusion_bench.modelpool.resnet_for_image_classification import load_torchvision_resnet
from fusion_bench.models.wrappers.switch import SwitchModule, _standardize_option_name
from fusion_bench.tasks.clip_classification import get_num_classes
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor

from fusion_tinting.families import image_classification, images
from fusion_tinting.families.family import Models
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.tinted_model import TintedModel


class _TaskSwitch(SwitchModule):
    """FusionBench's head switch, for a model that switches tasks itself."""

    __getattr__ = nn.Module.__getattr__

    def __init__(self):
        nn.Module.__init__(self)

    def set_active_option(self, option_name: str) -> None:
        """Switch to a task, by FusionBench's spelling of its name."""
        names = {_standardize_option_name(task): task for task in self.tasks}
        self.set_task(names.get(_standardize_option_name(option_name), option_name))


class SwitchedClassifier(image_classification.TintedClassifier, _TaskSwitch):
    """A tinted classifier that FusionBench's `set_active_option(model, task)` finds and switches."""


class ImageClassificationPool(PoolFamily):
    """The heads are the experts' own last layers; of the pre-trained model's, nothing is used."""

    name: ClassVar[str] = "image_classification"
    model_class: ClassVar[type[TintedModel]] = SwitchedClassifier

    def models(self) -> Models:
        """Return what the pool loads, torchvision's models too, or checkpoints as they are."""
        return replace(
            super().models(),
            reader=self.reader(partial(self.pool.load_processor, stage="test")),
            load=self._load,
        )

    def check(self) -> None:
        """Refuse what has no trained head, reads images otherwise, or has classes that nobody knows.

        Raises:
            ValueError: naming the task.
        """
        for task in self.tasks:
            if checkpoint_of(self.pool, task) is None:
                raise ValueError(
                    f"The model pool would give the expert `{task}` a new, untrained head. Name its "
                    f"fine-tuned checkpoint alone: `{task}: folder or hub id`; for torchvision, in a "
                    f"`{__name__}.{TorchvisionResNetPool.__name__}`, "
                    f"`{task}: {{model_name: ..., weights: file}}`."
                )
        self._classes = {task: _class_count(task) for task in self.tasks}
        if not of_torchvision(self.pool):
            paths = {task: str(checkpoint_of(self.pool, task)) for task in self.tasks}
            images.require_read_alike(self.family.models.reader, paths)

    def load(self) -> None:
        """Load the pre-trained model and, one after another, every expert for its head.

        Raises:
            ValueError: a checkpoint that lacks tensors, or a head whose width is not the task's number of
                classes.
        """
        super().load()
        for task, head in self.heads.items():
            width = image_classification.width(head)
            if width != self._classes[task]:
                raise ValueError(
                    f"The head of the expert `{task}` has {width} classes; the task has "
                    f"{self._classes[task]}. Expected a checkpoint that was fine-tuned on this task."
                )

    def _load(self, name: str) -> nn.Module:
        path = checkpoint_of(self.pool, name)
        if path is None or of_torchvision(self.pool):
            return self.opened(name)
        return image_classification.load(path, with_head=name != PRETRAINED)


class AutoImageClassificationPool(ConvNextForImageClassificationPool):
    """FusionBench's pool of ConvNeXts, for every image classifier of transformers, such as ViT and Swin.

    Args:
        models: model name -> folder or hub id.
    """

    def load_processor(self, *args: Any, **kwargs: Any) -> Any:
        """Load the pre-trained model's image processor."""
        return AutoImageProcessor.from_pretrained(self.get_model_config(PRETRAINED))

    def save_model(self, model: nn.Module, path: str, *args: Any, **kwargs: Any) -> None:
        """Save a merged or a tinted model with the processor: a folder."""
        model.save_pretrained(path)
        self.load_processor().save_pretrained(path)


class TorchvisionResNetPool(ResNetForImageClassificationPool):
    """FusionBench's pool of torchvision's ResNets, and of fine-tuned ones: `weights` can be a file.

    Args:
        models: model name -> `{model_name: resnet50, weights: FILE}`, a state dict in safetensors or as
            `torch.save` writes it, with the classes of its head; or what the stock pool takes.
        **kwargs: as the stock class.
    """

    def __init__(self, models: Any, type: str = "torchvision", **kwargs: Any):
        super().__init__(models, type=type, **kwargs)

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> nn.Module:
        """Load a ResNet of torchvision.

        Raises:
            ValueError: a file that does not hold this ResNet.
        """
        config = self._models.get(model_name_or_config) if isinstance(model_name_or_config, str) else None
        file = state_dict_file(config)
        if file is None:
            return super().load_model(model_name_or_config, *args, **kwargs)
        read = load_file if file.suffix == ".safetensors" else _load_pickled_tensors
        tensors = read(file)
        try:
            model = load_torchvision_resnet(config["model_name"], None, len(tensors["fc.weight"]))
            model.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"`{file}` holds no {config['model_name']} of torchvision: {error}") from error
        return model

    def save_model(self, model: nn.Module, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the state dict of a ResNet, or of a tinted model's shared one, as `load_model` reads it."""
        super().save_model(model.merged if isinstance(model, TintedModel) else model, path)


def of_torchvision(pool: BaseModelPool) -> bool:
    """Return whether a ResNet pool's models are torchvision's."""
    return getattr(pool, "type", None) == "torchvision"


def checkpoint_of(pool: BaseModelPool, name: str) -> str | None:
    """Return the folder, hub id or file that a pool loads a model from as it is, with its own head."""
    config = pool.get_model_config(name)
    if of_torchvision(pool):
        return state_dict_file(config) if isinstance(pool, TorchvisionResNetPool) else None
    if isinstance(config, str):
        return config
    as_it_is = config.get("pretrained", True) and config.get("dataset_name") is None
    return config["config_path"] if as_it_is else None


def state_dict_file(config: Any) -> Path | None:
    """Return the file that `weights` names; None where they are a name of torchvision's."""
    weights = config.get("weights") if hasattr(config, "get") else None
    return Path(weights) if weights and Path(weights).suffix in (".safetensors", ".pth", ".pt") else None


def _load_pickled_tensors(file: Path) -> dict:
    return torch.load(file, map_location="cpu", weights_only=True)


def _class_count(task: str) -> int:
    try:
        return get_num_classes(task)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"FusionBench knows no classes of the task `{task}`. Give their names, in the order of the "
            f"labels: `+taskpool.class_names.{task}=[cat, dog]`."
        ) from error
