"""Text classifiers of transformers: FusionBench's pools of RoBERTa and the like, and of GPT-2."""

from collections.abc import Mapping
from functools import cached_property, partial

from datasets import ClassLabel, Dataset
from fusion_bench.taskpool import GPT2TextClassificationTaskPool
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from fusion_tinting.errors import unknown
from fusion_tinting.families import sequence_classification as family
from fusion_tinting.families import texts
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.unlabeled import LABEL_KEYS, Unlabeled


class TextClassifierPool(PoolFamily):
    """Backbones are merged; a task's head is its expert's, whatever its width. A single output is a number.

    A model is known by its id alone: a pool may name the classifiers, or their backbones, which is what
    FusionBench's own methods can merge.

    A data set has one column of texts, or two of pairs, under any names, and labels in `label`.
    """

    model_class = texts.TintedText

    @cached_property
    def tokenizer(self):
        """The pool's, which pads on the right: what a text gives must not depend on its batch."""
        loaded = getattr(self.pool, "tokenizer", None)  # GPT-2's pool has done it
        tokenizer = self.pool.load_tokenizer() if loaded is None else loaded
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def configs(self) -> Mapping[str, PreTrainedConfig]:
        """Model name -> its checkpoint's configuration; a `label2id` beside its path stands above it."""
        return {name: _config(self._named(name), self.path(name)) for name in self.pool.all_model_names}

    def path(self, name: str) -> str:
        """Folder or hub id of a model.

        Raises:
            ValueError: a model that the pool does not name so.
        """
        named = self._named(name)
        if not isinstance(named, Mapping) or "pretrained_model_name_or_path" not in named:
            raise ValueError(
                f"`modelpool.models.{name}` must have a `pretrained_model_name_or_path`. Found {named!r}."
            )
        return str(named["pretrained_model_name_or_path"])

    def check(self) -> None:
        """Refuse models of several architectures, and a tokenizer that is not theirs.

        Raises:
            ValueError: naming the model.
        """
        texts.same_architecture(self.configs[PRETRAINED], {task: self.configs[task] for task in self.tasks})
        texts.require_fitting(self.tokenizer, self.configs[PRETRAINED])

    def check_taskpool(self, taskpool) -> None:
        """Refuse the stock task pool; ours checks its labels and metrics.

        Raises:
            ValueError: naming the task.
        """
        if isinstance(taskpool, GPT2TextClassificationTaskPool) and not isinstance(
            taskpool, TintedEvaluation
        ):
            raise ValueError(
                f"The task pool {type(taskpool).__name__} would report the shared encoder alone. Use "
                "`taskpool=gpt2_glue`."
            )
        if hasattr(taskpool, "check"):
            taskpool.check(self)

    def load(self) -> None:
        """Load the pre-trained backbone and every expert once, for its head."""
        parts = family.taken_apart(
            family.load(self.path(PRETRAINED), base_of=True),
            {task: partial(self.classifier, task) for task in self.tasks},
        )
        self.pretrained, self.experts, self.heads, self.tensor_names = parts

    def classifier(self, task: str) -> PreTrainedModel:
        """A task's expert, whole."""
        return family.load(self.path(task), pad_token_id=self.tokenizer.pad_token_id)

    def unlabeled(self, task: str, split: str) -> Unlabeled:
        """The tokens of a task's texts.

        Raises:
            ValueError: an empty split, or columns that are no texts.
        """
        return self.asked(task, self.dataset(task, split), f"the {split} split of `{task}`")

    def asked(self, task: str, dataset: Dataset, where: str) -> Unlabeled:
        """The tokens of what a task's model is given of a data set: its texts; raises as `tokens`."""
        return self.tokens(dataset, where)

    def tokens(self, dataset: Dataset, where: str) -> Unlabeled:
        """The tokens of a data set's texts: of its one or two columns of strings, in their order.

        Raises:
            ValueError: no such column, or more.
        """
        columns = [name for name, feature in dataset.features.items() if _is_text(name, feature)]
        if len(columns) not in (1, 2):
            raise ValueError(
                f"Expected one or two columns of texts in {where}. Found {columns} among "
                f"{dataset.column_names}."
            )
        return texts.tokenised(
            self.tokenizer, [list(dataset[name]) for name in columns], self.tokenizer.model_max_length
        )

    def labels(self, task: str, dataset: Dataset) -> tuple[Tensor, list[int]]:
        """The labels, (N,), and the head's output for each of the data's classes; see `class_order`.

        Raises:
            ValueError: no labels, hidden ones, or none that this task's head can tell.
        """
        where, config = f"the test data of `{task}`", self.configs[task]
        if "label" not in dataset.column_names:
            raise unknown(f"column of labels in {where}", "label", dataset.column_names)
        values, feature = list(dataset["label"]), dataset.features["label"]
        if -1 in values:
            raise ValueError(
                f"The labels in {where} are hidden (-1), as in GLUE's own test splits: nothing can be "
                "scored there. Use `split: validation`."
            )
        order = list(range(config.num_labels))
        if isinstance(feature, ClassLabel):
            order = texts.class_order(feature.names, config, where)
        return texts.labels_of(values, config.num_labels, {}, where, "label"), order

    def _named(self, name: str):
        return self.pool.get_model_config(name)


def _config(named: Mapping, path: str) -> PreTrainedConfig:
    told = {"label2id": dict(named["label2id"])} if "label2id" in named else {}
    return AutoConfig.from_pretrained(path, **told)


def _is_text(name: str, feature) -> bool:
    return name not in LABEL_KEYS and texts.is_text(feature)
