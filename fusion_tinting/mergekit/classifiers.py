"""Text classifiers that a configuration names, made ready for `tint`."""

from functools import partial
from typing import ClassVar

from transformers import AutoConfig

from fusion_tinting.families import sequence_classification as family
from fusion_tinting.families.texts import same_architecture, tokenised
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.recipes import FILES
from fusion_tinting.mergekit.rows import Inputs, Rows, reachable
from fusion_tinting.mergekit.texts import shared_tokenizer


class Classifiers:
    """Text classifiers: encoders to merge, a head for every task. See `learn.FAMILY`."""

    reads: ClassVar[tuple[str, ...]] = ("text", "text_pair", "max_length")
    defaults: ClassVar[dict] = {}
    recipes = FILES  # `yaml` wants heads of one shape, and a base that has one
    head = "head"

    def __init__(self, config: Config):
        by_task = config.by_task
        self._rows = {task: Rows(expert) for task, expert in by_task.items()}
        same_architecture(
            reachable(AutoConfig.from_pretrained, config.base_model),
            {task: reachable(AutoConfig.from_pretrained, by_task[task].model) for task in by_task},
        )
        self.tokenizer = shared_tokenizer(config)
        self.tokenizer.padding_side = "right"  # what a text gives must not depend on its batch
        load = partial(family.load, pad_token_id=self.tokenizer.pad_token_id)
        parts = family.taken_apart(
            reachable(partial(load, base_of=True), config.base_model),
            {task: partial(reachable, load, expert.model) for task, expert in by_task.items()},
        )
        self.pretrained, self.experts, self.heads, self.names = parts

    def inputs(self, task: str) -> Inputs:
        """The tokens of a task's texts; batches are padded to their longest."""
        rows, length = self._rows[task], self._rows[task].data.max_length
        columns = [rows.texts("text"), rows.texts("text_pair")]
        columns = [column for column in columns if column is not None]
        unlabeled = tokenised(self.tokenizer, columns, length)
        config = self.heads[task].rest.config
        return Inputs(unlabeled, rows.labels(config.num_labels, config.label2id))
