"""Causal language models: FusionBench's `CausalLMPool`."""

from typing import Any, ClassVar

from fusion_tinting.families import texts
from fusion_tinting.families.family import Models
from fusion_tinting.families.rows import Rows
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.method.task_vectors import PRETRAINED

TEXT_LENGTH = 256
"""Tokens of the blocks that texts are cut into, where the tokenizer names no smaller `model_max_length`."""


class CausalLMFamily(PoolFamily):
    """A model is known by its folder or hub id. A data set has its texts in its only column of strings.

    FusionBench's task pools for language models score by generation and know no tints: name none, and a run
    ends with the agreement with the experts on texts kept aside.
    """

    name: ClassVar[str] = "causal_lm"

    def models(self) -> Models:
        """Return folders or hub ids, and the pool's tokenizer."""
        paths = {name: self.pool.get_model_path(name) for name in self.pool.all_model_names}
        base = paths.pop(PRETRAINED)
        return Models(
            base, {task: paths[task] for task in self.tasks}, reader=self.reader(self.pool.load_tokenizer)
        )

    def check(self) -> None:
        """Refuse models of several architectures, and a tokenizer that is not theirs."""
        texts.require_known_tokens(self.family.tokenizer, self.family.configs[PRETRAINED])
        super().check()

    def rows(self, task: str, dataset: Any, where: str) -> Rows:
        """Return the rows of a data set, whose only column of strings is the text."""
        columns = [name for name, feature in dataset.features.items() if texts.is_text(feature)]
        if len(columns) != 1:
            raise ValueError(
                f"Expected one column of texts in {where}. Found {columns}. Where a data set has several, "
                "name one: `columns: [text]` of Parquet files, or `select_columns`."
            )
        length = min(self.family.tokenizer.model_max_length, TEXT_LENGTH)
        return Rows(dataset, where, {"text": columns[0]}, length)
