"""Text classifiers of transformers: FusionBench's pools of RoBERTa and the like, and of GPT-2."""

from collections.abc import Mapping
from typing import Any, ClassVar

from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from fusion_tinting.errors import unknown
from fusion_tinting.families import texts
from fusion_tinting.families.family import Models
from fusion_tinting.families.labels import names_of
from fusion_tinting.families.rows import Rows
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.samples import LABEL_KEYS


class TextClassifierPool(PoolFamily):
    """A model is known by its id alone, so that a pool may name the classifiers, or their backbones.

    Backbones are what FusionBench's own methods can merge. A data set has one column of texts, or two of
    pairs, under any names, and labels in `label`.

    Class attributes:
        texts: how many columns of texts a data set may have.
    """

    name: ClassVar[str] = "sequence_classification"
    texts: ClassVar[tuple[int, ...]] = (1, 2)

    def models(self) -> Models:
        """Return folders or hub ids, the pool's tokenizer, and a `label2id` that stands beside a path."""
        loaded = getattr(self.pool, "tokenizer", None)  # GPT-2's pool has done it
        names = self.pool.all_model_names
        config = {name: config for name in names if (config := self.changes(name))}
        return Models(
            self.path(PRETRAINED),
            {task: self.path(task) for task in self.tasks},
            reader=self.reader(self.pool.load_tokenizer) if loaded is None else loaded,
            config=config,
        )

    def path(self, name: str) -> str:
        """Return the folder or hub id of a model.

        Args:
            name: in the pool.

        Raises:
            ValueError: a model that the pool does not name so.
        """
        named = self.named(name)
        if not isinstance(named, Mapping) or "pretrained_model_name_or_path" not in named:
            raise ValueError(
                f"`modelpool.models.{name}` must have a `pretrained_model_name_or_path`. Found {named!r}."
            )
        return str(named["pretrained_model_name_or_path"])

    def named(self, name: str) -> Any:
        """Return what the pool's configuration says of a model."""
        return self.pool.get_model_config(name)

    def changes(self, name: str) -> Mapping[str, Any]:
        """Return what stands above the configuration of a model's checkpoint.

        Args:
            name: in the pool.
        """
        named = self.named(name)
        return {"label2id": dict(named["label2id"])} if "label2id" in named else {}

    def check(self) -> None:
        """Refuse models of several architectures, and a tokenizer that is not theirs."""
        texts.require_fitting(self.family.tokenizer, self.family.configs[PRETRAINED])
        super().check()

    def rows(self, task: str, dataset: Dataset, where: str) -> Rows:
        """Return the rows of a data set: its columns of strings, in their order."""
        columns = [name for name, feature in dataset.features.items() if _is_text(name, feature)]
        if len(columns) not in self.texts:
            counts = " or ".join(map(str, self.texts))
            raise ValueError(
                f"Expected {counts} column(s) of texts in {where}. Found {columns} among "
                f"{dataset.column_names}."
            )
        keys = dict(zip(("text", "text_pair"), columns, strict=False))
        return Rows(dataset, where, {**keys, "label": "label"}, self.family.tokenizer.model_max_length)

    def labels(self, task: str, dataset: Dataset) -> tuple[Tensor, list[int]]:
        """Return the labels, (N,), and the head's output for each of the data's classes; see `class_order`.

        Where a row has none, its label is as in `Rows.labels`. Names in a column of strings are the head's.

        Args:
            task: whose test data it is.
            dataset: with a column `label`.

        Raises:
            ValueError: no labels, hidden ones, or none that this task's head can tell.
        """
        where, config = f"the test data of `{task}`", self.family.configs[task]
        if "label" not in dataset.column_names:
            raise unknown(f"column of labels in {where}", "label", dataset.column_names)
        feature, order, names = dataset.features["label"], list(range(config.num_labels)), names_of(config)
        if task in self.family.objectives:
            return Rows(dataset, where, {"label": "label"}).several(config.num_labels, names), order
        if isinstance(feature, ClassLabel):
            order, names = texts.class_order(feature.names, config, where), {}
            dataset = dataset.cast_column("label", Value("int64"))  # in the data's own order
        labels = Rows(dataset, where, {"label": "label"}).labels(config.num_labels, names)
        if labels is None:
            raise ValueError(
                f"The labels in {where} are hidden (-1), as in GLUE's own test splits: nothing can be "
                "scored there. Use `split: validation`."
            )
        return labels, order


NO_TEXT = {*LABEL_KEYS, "class", "category", "id", "idx", "uid", "guid", "uuid", "hash"}
"""Parts of the names of columns, such as `label_text`, whose strings no model is to read."""


def _is_text(name: str, feature: Any) -> bool:
    return texts.is_text(feature) and NO_TEXT.isdisjoint(name.lower().split("_"))
