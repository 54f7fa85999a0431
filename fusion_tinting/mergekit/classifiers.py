"""Text classifiers that a configuration names, made ready for `tint`."""

from typing import ClassVar

from torch import nn

from fusion_tinting.experts import LoadedExperts
from fusion_tinting.families import sequence_classification
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.texts import Texts, digest, reachable, shared_tokenizer
from fusion_tinting.unlabeled import Unlabeled


class Classifiers:
    """Text classifiers: encoders to merge, a head for every task."""

    defaults: ClassVar[dict] = {}
    head = "head"

    def __init__(self, config: Config):
        family, by_task = sequence_classification, config.by_task
        self._data = {task: expert.data for task, expert in by_task.items()}
        self.tokenizer = shared_tokenizer(config)
        self.names: dict[str, str] = {}
        self.heads: dict[str, nn.Module] = {}
        for task, expert in by_task.items():
            model = reachable(family.load, expert.model)
            if model.config.pad_token_id is None:  # which text of a batch ends where
                model.config.pad_token_id = self.tokenizer.pad_token_id
            self.names |= family.names_on_disk(model)
            _, self.heads[task] = family.split(model)
        self.experts = LoadedExperts(
            list(by_task), lambda task: family.split(family.load(by_task[task].model))[0]
        )
        base = reachable(lambda path: family.load(path, base_of=True), config.base_model)
        self.pretrained, _ = family.split(base)

    def unlabeled(self, task: str, rows: Texts) -> Unlabeled:
        """The tokens of a task's texts; batches are padded to their longest."""
        length = self._data[task].max_length
        pairs = () if rows.pairs is None else (rows.pairs,)
        tokens = self.tokenizer(rows.texts, *pairs, truncation=True, max_length=length)
        items = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
        pad = self.tokenizer.pad
        return Unlabeled(items, lambda batch: dict(pad(batch, return_tensors="pt")), version=digest(items))
