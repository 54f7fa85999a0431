"""What Model Tinting needs of FusionBench's model pools: one class for each kind of pool."""

import importlib
from collections.abc import Mapping
from typing import ClassVar

from fusion_bench import BaseModelPool
from torch import nn

from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

FAMILY = {
    "CLIPVisionModelPool": "clip:ClipPool",
    "OpenCLIPVisionModelPool": "open_clip:OpenClipPool",
    "ConvNextForImageClassificationPool": "image_classification:ImageClassificationPool",
    "Dinov2ForImageClassificationPool": "image_classification:ImageClassificationPool",
    "ResNetForImageClassificationPool": "image_classification:ImageClassificationPool",
    "CausalLMPool": "causal_lm:CausalLMFamily",
    "NYUv2ModelPool": "nyuv2:NYUv2Pool",
    "GPT2ForSequenceClassificationPool": "text_classification:TextClassifierPool",
    "Seq2SeqLMPool": "seq2seq:Seq2SeqFamily",
    "SequenceClassificationModelPool": "text_classification:TextClassifierPool",
}
"""FusionBench's class -> the module in this package and the class that knows such pools."""

SPLITS = ("test", "val", "train")


class PoolFamily:
    """One kind of model pool, as `ModelTinting` asks of it. A subclass checks
    what it can before a model is loaded, then gives the models, and each task's unlabelled inputs.

    Attributes:
        pool: the model pool; `_pretrained_` and the experts, whose names are the tasks.
        num_workers: loader processes for each task.
        pretrained: θ₀, an encoder; after `load`, as the next three.
        experts: task -> encoder of the expert; may load on access (`LoadedExperts`).
        heads: task -> head.
        tensor_names: parameter name -> its name in the checkpoint on disk, where they differ.
    """

    model_class: ClassVar[type[TintedModel]] = TintedModel
    layers: ClassVar[Mapping[str, str]] = {}
    """What `method.layer` means where it is another layer than the core's of that name."""

    pretrained: nn.Module
    experts: Mapping[str, nn.Module]
    heads: Mapping[str, nn.Module]
    tensor_names: Mapping[str, str] | None = None

    def __init__(self, pool: BaseModelPool, num_workers: int = 0):
        self.pool, self.num_workers = pool, num_workers

    @property
    def tasks(self) -> list[str]:
        """The experts' names."""
        return self.pool.model_names

    @property
    def objectives(self) -> Mapping[str, str]:
        """Task -> its objective, where its output is no class distribution: not `method.objective`'s."""
        return {}

    def check(self) -> None:
        """See whether adaptation can work, with nothing loaded.

        Raises:
            ValueError: what the pool lacks.
        """

    def check_taskpool(self, taskpool) -> None:
        """Refuse a stock task pool that would evaluate a tinted model wrongly.

        Raises:
            ValueError: naming the task pool to use.
        """

    def load(self) -> None:
        """Load the pre-trained model and the heads, and make the experts ready to load."""
        raise NotImplementedError

    def check_layer(self, layer: str | None) -> None:
        """Refuse a layer that such models cannot have as a tint; called after `load`.

        Raises:
            ValueError: naming the layer.
        """

    def unlabeled(self, task: str, split: str) -> Unlabeled:
        """The inputs of a task's split. Labels stay where they are.

        Raises:
            ValueError: an empty split.
        """
        raise NotImplementedError

    def dataset(self, task: str, split: str):
        """The pool's data set of a task.

        Raises:
            ValueError: an empty one.
        """
        dataset = getattr(self.pool, f"load_{split}_dataset")(task)
        if len(dataset) == 0:
            raise ValueError(f"The {split} split of `{task}` is empty.")
        return dataset


def stock_taskpool(taskpool, ours: type, heads: str, example: str) -> ValueError:
    """The error for a stock task pool, which would evaluate the shared encoder with heads of its own.

    Args:
        ours: the class to use in its place.
        heads: which heads those are.
        example: of a task pool that is configured with ours.
    """
    return ValueError(
        f"The task pool {type(taskpool).__name__} would evaluate the shared encoder with {heads} heads and "
        "report a wrong accuracy for the tinted model. Use a task pool of fusion_tinting, such as "
        f"`taskpool={example}`, or add `taskpool._target_={ours.__module__}.{ours.__name__}`."
    )


def family_of(pool, num_workers: int = 0) -> PoolFamily:
    """The family that knows a model pool.

    Raises:
        ValueError: a pool of an unknown kind.
    """
    for ancestor in type(pool).__mro__:
        if ancestor.__name__ in FAMILY:
            module, _, name = FAMILY[ancestor.__name__].partition(":")
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return found(pool, num_workers)
    raise ValueError(
        f"`method=model_tinting` knows no models of the kind in a {type(pool).__name__}. Expected a model "
        f"pool of one of these kinds: {', '.join(FAMILY)}."
    )
