"""Image classifiers of transformers and torchvision: a backbone with statistics, a head for each task."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families import images
from fusion_tinting.families.batch_norm import (
    MergedBatchNorm,
    merge_statistics,
    name_of_parameter,
    name_on_disk,
    restore_statistics,
)
from fusion_tinting.families.family import BY_FILE, Family
from fusion_tinting.families.labels import names_of
from fusion_tinting.families.loading import (
    configurations,
    load_partly,
    objectives_of,
    reachable,
    require_complete,
    require_one_architecture,
)
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.stored import in_files
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

HEADS = ("classifier", "fc")
"""What transformers and torchvision call a classifier's last layer."""


class ImageEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> what the classifier's head is given, from the classifier without it.

    Batch-norm statistics are parameters of it, so that they are merged (see `batch_norm`).

    Args:
        classifier: ResNet, ConvNeXt or DINOv2 for image classification of transformers, a ResNet of
            torchvision, or another whose last layer has the same name. Taken over and changed.

    Attributes:
        model: the classifier, with nothing in its head's place.
        head_name: that place.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.head_name = head_name(classifier)
        # Not a submodule: what the head was before fine-tuning is not merged, only saved again.
        self._own_head = [_replace(classifier, self.head_name, nn.Identity())]
        self.model = merge_statistics(call_class_forward(classifier)).requires_grad_(False).eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return what the head is given."""
        output = self.model(pixel_values)
        return output if isinstance(output, Tensor) else output.logits

    def classifier(self, head: nn.Module | None = None) -> nn.Module:
        """Return a classifier as it was given, with copies of this encoder and of a head.

        Args:
            head: None stands for its own.
        """
        model = restore_statistics(deepcopy(self.model))
        _replace(model, self.head_name, deepcopy(self._own_head[0] if head is None else head))
        return model


class TintedClassifier(TintedModel):
    """A tinted model whose encoder is an `ImageEncoder`."""

    @property
    def merged(self) -> nn.Module:
        """The shared classifier θ(λ), of the pre-trained model's class and with its head."""
        return self.as_given.classifier()

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:
        """Save `merged` as `AutoModelForImageClassification` reads it, and the artifact beside it.

        Args:
            path: a folder.
            **kwargs: as the model's own `save_pretrained`.
        """
        self.merged.save_pretrained(path, **kwargs)
        self.save(path)


class ImageClassification(Family):
    """Backbones are merged; a task's head is its expert's own last layer. Of the base's nothing is used."""

    keys: ClassVar[tuple[str, ...]] = ("image", "label")
    model_class: ClassVar[type[TintedModel]] = TintedClassifier

    @cached_property
    def configs(self) -> Mapping[str, PreTrainedConfig]:
        """Task, or `_pretrained_` -> its checkpoint's configuration."""
        return configurations(self.models)

    def check(self) -> None:
        """Refuse models of several architectures."""
        if self.models.load is None:
            base, experts = (
                self.configs[PRETRAINED],
                {task: self.configs[task] for task in self.models.tasks},
            )
            require_one_architecture(base, experts)

    def load(self) -> None:
        """Load the pre-trained model and, one after another, every expert for its head."""
        self.pretrained, _ = self._split(PRETRAINED)
        self.experts = LoadedExperts(
            self.models.tasks,
            lambda task: self._split(task)[0],
            in_files(self, AutoModelForImageClassification.from_config),
        )
        self.heads, configs = {}, {}
        for task in self.models.tasks:
            encoder, self.heads[task] = self._split(task)
            configs[task] = getattr(encoder.model, "config", None)
        self._objectives = objectives_of(configs)
        self.names = names_on_disk(self.pretrained)

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return images, preprocessed as for evaluation by the host or by the task's expert."""
        reader = self.models.reader
        if reader is None:
            reader = reachable(AutoImageProcessor.from_pretrained, self.models.experts[task])
        return images.inputs_of(rows, reader)

    @property
    def objectives(self) -> Mapping[str, str]:
        """Of several labels or values, by the expert's `problem_type`; after `load`."""
        return self._objectives

    def labels(self, task: str, rows: Rows) -> Tensor | None:
        """Return class indices; of several labels or values (N, C)."""
        read = rows.several if task in self.objectives else rows.labels
        return read(width(self.heads[task]), names_of(self.configs[task]))

    @property
    def variance_epsilon(self) -> float | None:
        """ε of the backbone's batch norms, the first one's where they differ."""
        return next(iter(self._epsilons), None)

    @property
    def recipes(self) -> str | None:
        """Files can be merged by a recipe where all batch norms have one ε."""
        return BY_FILE if len(self._epsilons) < 2 else None

    @property
    def head_names(self) -> Mapping[str, str]:
        """The head's names in the whole classifier."""
        names = next(iter(self.heads.values())).state_dict()
        return {f"head.{name}": f"{self.pretrained.head_name}.{name}" for name in names}

    @staticmethod
    def parameter_of(name: str, prefix: str) -> str:
        """Return what `ImageEncoder` calls a tensor."""
        return f"model.{name_of_parameter(name)}"

    @property
    def _epsilons(self) -> list[float]:
        norms = (m for m in self.pretrained.modules() if isinstance(m, MergedBatchNorm))
        return list(dict.fromkeys(norm.eps for norm in norms))

    def _split(self, name: str) -> tuple[ImageEncoder, nn.Module]:
        model = self.models.opened(name)
        if model is None:
            model = load(self.models.paths[name], with_head=name != PRETRAINED)
        return split(model)


def head_name(classifier: nn.Module) -> str:
    """Where a classifier keeps its head.

    Raises:
        ValueError: nowhere known.
    """
    for name in HEADS:
        if name in classifier._modules:
            return name
    outputs = getattr(getattr(classifier, "config", None), "num_labels", 0)
    linear = {name: m for name, m in classifier.named_modules() if isinstance(m, nn.Linear)}
    inner = [name for name, module in linear.items() if module.out_features == outputs]
    if len(inner) == 1:  # such as timm's within transformers' wrapper
        return inner[0]
    raise ValueError(
        f"A {type(classifier).__name__} has no last layer named {' or '.join(HEADS)}. Expected an "
        "image classifier of transformers or a ResNet of torchvision."
    )


def split(classifier: nn.Module) -> tuple[ImageEncoder, nn.Module]:
    """Split a classifier, which is taken over, into its encoder and its head."""
    head = classifier.get_submodule(head_name(classifier))
    return ImageEncoder(classifier), head.requires_grad_(False).eval()


def _replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of a submodule, which is returned."""
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    replaced, owner._modules[last] = owner._modules[last], module
    return replaced


def width(head: nn.Module) -> int:
    """Return the number of classes that a head tells apart; 0 of one without parameters."""
    return max((len(parameter) for parameter in head.parameters()), default=0)


def load(path: str, with_head: bool = True) -> nn.Module:
    """Load a classifier of transformers in float32.

    Args:
        path: folder or hub id.
        with_head: whether the checkpoint must have a head; else that may be randomly initialized.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: no image classifier, or tensors that the checkpoint lacks, named.
    """
    model, missing = load_partly(AutoModelForImageClassification, path, safetensors=None)
    own = f"{head_name(model)}."
    require_complete(path, model, (name for name in missing if with_head or not name.startswith(own)))
    return model


def call_class_forward(model: nn.Module) -> nn.Module:
    """Undo FusionBench's `model.forward = lambda ...`, in place.

    It holds on to the model that it was made for: a copy would go on with the original's weights.
    """
    for name in ("forward", "original_forward"):
        vars(model).pop(name, None)
    return model


def names_on_disk(encoder: ImageEncoder) -> Mapping[str, str]:
    """Parameter name -> tensor name in the checkpoint that the classifier was loaded from."""
    model, names = encoder.model, {}
    for name, parameter in model.named_parameters():
        stored = name_on_disk(name)
        if hasattr(model, "save_pretrained"):
            (stored,) = revert_weight_conversion(model, {stored: parameter})
        names[f"model.{name}"] = stored
    return names
