"""FusionBench's model pools as the models and rows of a family: one class for each kind of pool."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

from fusion_bench import BaseModelPool
from torch import nn

from fusion_tinting.families import family_class
from fusion_tinting.families.family import Family, Models
from fusion_tinting.families.loading import Unreachable, reachable
from fusion_tinting.families.rows import Rows
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.tinted_model import TintedModel
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
    "TokenClassificationModelPool": "token_classification:TokenClassifierPool",
    "SentenceEmbeddingModelPool": "sentence_embedding:SentenceEncoderPool",
    "SequenceClassificationModelPool": "text_classification:TextClassifierPool",
}
"""FusionBench's class -> the module in this package and the class that reads such pools."""

SPLITS = ("test", "val", "train")

PATHS = (
    "pretrained_model_name_or_path", "peft_model_path", "ckpt_path", "config_path", "pickle_path",
    "state_dict_path", "weights",
)  # fmt: skip
"""Keys under which FusionBench's model pools name a checkpoint."""

OFFLINE = ("clip-mini_8", "openclip-mini_3", "resnet-mini_3", "roberta-mini_4", "nyuv2-mini_3")
"""Pools that need no download."""


@contextmanager
def offline_pools() -> Iterator[None]:
    """Within the context, what cannot be reached is an error that names the pools without a download.

    Raises:
        FileNotFoundError: what cannot be reached.
    """
    try:
        yield
    except Unreachable as error:
        raise FileNotFoundError(
            f"{error} Pools that need no download, `modelpool` and `taskpool` of one name: "
            f"{', '.join(OFFLINE)}."
        ) from error


def loaded(load: Callable[[Any], Any], name: Any, called: str) -> Any:
    """Return `load(name)`.

    Args:
        load: of a pool.
        name: of a model or task.
        called: what an error calls it.

    Raises:
        FileNotFoundError: what cannot be reached.
    """
    with offline_pools():
        return reachable(load, name, called)


def read_data(load: Callable[[Any], Any], name: Any, called: str) -> Any:
    """Return the data set `load(name)`.

    Args:
        load: of a pool.
        name: of a task, or a configuration.
        called: what an error calls it.

    Raises:
        FileNotFoundError: what cannot be reached.
        ValueError: what cannot be read, or is empty.
    """
    try:
        dataset = loaded(load, name, called[0].upper() + called[1:])
    except ValueError as error:
        raise ValueError(f"{called} cannot be read: {' '.join(str(error).split())}") from error
    if isinstance(dataset, Mapping):
        raise ValueError(f"{called} has the parts {list(dataset)}: say with `split` which one is meant.")
    if dataset is None:
        raise ValueError(f"{called} cannot be read: the function that loads it returned nothing.")
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"{called} is a stream: expected a data set with a length (`streaming: false`).")
    if len(dataset) == 0:
        raise ValueError(f"{called[0].upper() + called[1:]} is empty.")
    return dataset


def named_in(config: Any) -> str | None:
    """Return the checkpoint that a configuration of FusionBench names.

    Args:
        config: of a model or processor.
    """
    if isinstance(config, str):
        return config
    paths = (config.get(key) for key in PATHS) if hasattr(config, "get") else ()
    return next(map(str, filter(None, paths)), None)


def model_id(pool: BaseModelPool, name: str) -> str:
    """Return the hub id or path of a pool's model, as its configuration says.

    Args:
        pool: the model pool.
        name: of the model.
    """
    return named_in(pool.get_model_config(name)) or name


class PoolFamily:
    """A model pool, read as the models and the rows of a family.

    A subclass names the family and says, in `models` and `rows`, how the pool's configuration becomes its
    models and its data sets become rows; where a pool can be seen to fail before a model is loaded, in
    `check`.

    Class attributes:
        name: of the family.

    Attributes:
        pool: the model pool; `_pretrained_` and the experts, whose names are the tasks.
        num_workers: loader processes for each task.
    """

    name: ClassVar[str]

    def __init__(self, pool: BaseModelPool, num_workers: int = 0):
        self.pool, self.num_workers = pool, num_workers

    @cached_property
    def family(self) -> Family:
        """The pool's models as one of `families.FAMILIES`."""
        return family_class(self.name)(self.models())

    def models(self) -> Models:
        """Return the pool's models: by default the pool loads them itself."""
        paths = {name: model_id(self.pool, name) for name in (PRETRAINED, *self.tasks)}
        return Models(paths.pop(PRETRAINED), paths, load=self.opened)

    def opened(self, name: str, load: Callable[[str], Any] | None = None) -> Any:
        """Return a model as the pool loads it.

        Args:
            name: in the pool.
            load: a method of the pool (default: `load_model`).

        Raises:
            FileNotFoundError: one that cannot be reached.
        """
        called = f"`{model_id(self.pool, name)}` (the model `{name}`)"
        return loaded(load or self.pool.load_model, name, called)

    def reader(self, load: Callable[..., Any]) -> Any:
        """Return the pool's processor or tokenizer.

        Args:
            load: a method of the pool.

        Raises:
            FileNotFoundError: one that cannot be reached.
        """
        config = getattr(self.pool, "_processor", None) or getattr(self.pool, "_tokenizer", None)
        return loaded(lambda _: load(), None, f"`{named_in(config) or config}` (of the model pool)")

    def rows(self, task: str, dataset: Any, where: str) -> Rows:
        """Return the rows of a data set: by default images.

        Args:
            task: the expert's name.
            dataset: of the pool or of a task pool.
            where: what an error calls it.

        Raises:
            ValueError: columns that the family cannot read.
        """
        return Rows(dataset, where, {"image": "image", "label": "label"}, num_workers=self.num_workers)

    def check(self) -> None:
        """Find out whether adaptation can work, with nothing loaded.

        Raises:
            ValueError: what the pool lacks.
        """
        self.family.check()

    @offline_pools()
    def load(self) -> None:
        """Load the pre-trained model and the heads, and make the experts ready to load."""
        self.family.load()

    def unlabeled(self, task: str, split: str) -> Unlabeled:
        """Return the inputs of a task's split. Labels stay where they are.

        Args:
            task: the expert's name.
            split: one of `SPLITS`.

        Raises:
            ValueError: an empty split, or rows that the family cannot read.
        """
        rows = self.rows(task, self.dataset(task, split), f"the {split} split of `{task}`")
        return self.family.inputs(task, rows)

    def dataset(self, task: str, split: str) -> Any:
        """Return the pool's data set of a task.

        Args:
            task: the expert's name.
            split: one of `SPLITS`.

        Raises:
            ValueError: an empty one, or one that cannot be read.
            FileNotFoundError: one that cannot be reached.
        """
        load = getattr(self.pool, f"load_{split}_dataset")
        return read_data(load, task, f"the {split} split of `{task}`")

    @property
    def tasks(self) -> list[str]:
        """The experts' names."""
        return self.pool.model_names

    @property
    def model_class(self) -> type[TintedModel]:
        """Of what `tint` returns."""
        return self.family.model_class

    @property
    def pretrained(self) -> nn.Module:
        """θ₀, an encoder; after `load`, as the next three."""
        return self.family.pretrained

    @property
    def experts(self) -> Mapping[str, nn.Module]:
        """Task -> encoder of its expert."""
        return self.family.experts

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Task -> head."""
        return self.family.heads

    @property
    def tensor_names(self) -> Mapping[str, str]:
        """Parameter name -> its name in the checkpoint on disk, where they differ."""
        return self.family.names

    @property
    def layers(self) -> Mapping[str, str]:
        """What `method.layer` means where it is another layer than the core's of that name."""
        return self.family.layers


def family_of(pool: BaseModelPool, num_workers: int = 0) -> PoolFamily:
    """Return the class that reads a model pool, made for it.

    Args:
        pool: of FusionBench or derived from one of its pools.
        num_workers: loader processes for each task.

    Raises:
        ValueError: a pool of an unknown kind.
    """
    for ancestor in type(pool).__mro__:
        if ancestor.__name__ in FAMILY:
            module, _, name = FAMILY[ancestor.__name__].partition(":")
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)(pool, num_workers)
    raise ValueError(
        f"`method=model_tinting` knows no models of the kind in a {type(pool).__name__}. Expected a model "
        f"pool of one of these kinds: {', '.join(FAMILY)}."
    )
