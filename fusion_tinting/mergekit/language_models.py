"""Causal language models that a configuration names, made ready for `tint`."""

from typing import ClassVar

from torch import nn

from fusion_tinting.experts import LoadedExperts
from fusion_tinting.families import causal_lm
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.texts import Texts, reachable, shared_tokenizer
from fusion_tinting.unlabeled import Unlabeled


class LanguageModels:
    """Causal language models, merged whole; every next token of a text is taught."""

    defaults: ClassVar[dict] = {"sampler": "all", "objective": "soft"}

    def __init__(self, config: Config):
        family, by_task = causal_lm, config.by_task
        self._data = {task: expert.data for task, expert in by_task.items()}
        self.tokenizer = shared_tokenizer(config)
        base = reachable(family.load, config.base_model)
        self.names, self.head = family.names_on_disk(base), family.head_name(base)
        self.pretrained = family.LanguageModel(base)
        self.heads = {task: nn.Identity() for task in by_task}
        self.experts = LoadedExperts(
            list(by_task), lambda task: family.LanguageModel(reachable(family.load, by_task[task].model))
        )

    def unlabeled(self, task: str, rows: Texts) -> Unlabeled:
        """A task's texts one after another, in blocks of `max_length` tokens."""
        if rows.pairs is not None or rows.labels is not None:
            raise ValueError(
                f"Language models take one text column, no pairs and no labels (task `{task}`)."
            )
        tokens = self.tokenizer(rows.texts)["input_ids"]
        length = self._data[task].max_length
        blocks = causal_lm.blocks_of(tokens, length, self.tokenizer.eos_token_id)
        return Unlabeled([block["input_ids"] for block in blocks])
