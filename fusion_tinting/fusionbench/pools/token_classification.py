"""Token classifiers of transformers: a pool like FusionBench's of text classifiers, which lacks one."""

from typing import ClassVar

from datasets import Dataset
from fusion_bench.modelpool import SequenceClassificationModelPool

from fusion_tinting.families.rows import Rows
from fusion_tinting.fusionbench.pools.text_classification import TextClassifierPool


class TokenClassificationModelPool(SequenceClassificationModelPool):
    """A pool of `AutoModelForTokenClassification` models."""


class TokenClassifierPool(TextClassifierPool):
    """A data set has its words in `tokens`, or its texts in its only column of strings.

    FusionBench has no task pool for these: a run ends with the agreement with experts on texts kept aside.
    """

    name: ClassVar[str] = "token_classification"
    texts: ClassVar[tuple[int, ...]] = (1,)

    def rows(self, task: str, dataset: Dataset, where: str) -> Rows:
        """Return the rows of a data set."""
        if "tokens" not in dataset.column_names:
            return super().rows(task, dataset, where)
        return Rows(dataset, where, {"text": "tokens"}, self.family.tokenizer.model_max_length)
