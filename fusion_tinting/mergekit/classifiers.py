"""Text classifiers that a configuration names, made ready for `tint`."""

from typing import ClassVar

from torch import nn

from fusion_tinting.experts import LoadedExperts
from fusion_tinting.families import sequence_classification as family
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.rows import Inputs, Rows, reachable
from fusion_tinting.mergekit.texts import digest, same_architecture, shared_tokenizer
from fusion_tinting.unlabeled import Unlabeled


class Classifiers:
    """Text classifiers: encoders to merge, a head for every task. See `learn.FAMILY`."""

    reads: ClassVar[tuple[str, ...]] = ("text", "text_pair", "max_length")
    defaults: ClassVar[dict] = {}
    recipes = False  # mergekit wants heads of one shape, and a base that has one
    head = "head"

    def __init__(self, config: Config):
        by_task = config.by_task
        self._rows = {task: Rows(expert) for task, expert in by_task.items()}
        same_architecture(config)
        self.tokenizer = shared_tokenizer(config)
        self.tokenizer.padding_side = "right"  # what a text gives must not depend on its batch
        base = reachable(lambda path: family.load(path, base_of=True), config.base_model)
        pooled = family.has_pooler(base)
        self.pretrained, _ = family.split(base)
        self.names: dict[str, str] = {}
        self.heads: dict[str, nn.Module] = {}
        for task, expert in by_task.items():
            model = reachable(family.load, expert.model)
            if model.config.pad_token_id is None:  # which text of a batch ends where
                model.config.pad_token_id = self.tokenizer.pad_token_id
            self.names |= family.names_on_disk(model, pooled)
            _, self.heads[task] = family.split(model, pooled)
        self.experts = LoadedExperts(
            list(by_task), lambda task: family.split(family.load(by_task[task].model), pooled)[0]
        )

    def inputs(self, task: str) -> Inputs:
        """The tokens of a task's texts; batches are padded to their longest."""
        rows, length = self._rows[task], self._rows[task].data.max_length
        columns = [rows.texts("text"), rows.texts("text_pair")]
        columns = [column for column in columns if column is not None]
        tokens = self.tokenizer(*columns, truncation=True, max_length=length)
        items = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
        config, pad = self.heads[task].rest.config, self.tokenizer.pad
        unlabeled = Unlabeled(
            items, lambda batch: dict(pad(batch, return_tensors="pt")), version=digest(items)
        )
        return Inputs(unlabeled, rows.labels(config.num_labels, config.label2id))
