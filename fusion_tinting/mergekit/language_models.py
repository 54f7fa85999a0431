"""Causal language models that a configuration names, made ready for `tint`."""

from typing import ClassVar

from torch import nn

from fusion_tinting.families import causal_lm as family
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.names import ModelNames
from fusion_tinting.mergekit.recipes import YAML
from fusion_tinting.mergekit.rows import Inputs, Rows, reachable
from fusion_tinting.mergekit.texts import shared_tokenizer
from fusion_tinting.method.tints import resolve_layer
from fusion_tinting.run.experts import LoadedExperts


class LanguageModels:
    """Causal language models, merged whole; every next token of a text is taught. See `learn.FAMILY`."""

    reads: ClassVar[tuple[str, ...]] = ("text", "max_length")
    defaults: ClassVar[dict] = {"sampler": "all", "objective": "soft", "batch_size": 4}
    recipes = YAML

    def __init__(self, config: Config):
        by_task = config.by_task
        _check_settings(config)
        self._rows = {task: Rows(expert) for task, expert in by_task.items()}
        self.tokenizer = shared_tokenizer(config)
        base = reachable(family.load, config.base_model)
        self.pretrained = family.LanguageModel(base)
        self.head = family.head_name(base)
        layer = resolve_layer(self.pretrained, config.adapt.get("layer", "head"))
        if layer not in (None, "head", self.head):
            family.require_untied(base, layer)
        self.names = _names_on_disk(config.base_model, base)
        self.heads = {task: nn.Identity() for task in by_task}
        self.experts = LoadedExperts(
            list(by_task), lambda task: family.LanguageModel(reachable(family.load, by_task[task].model))
        )

    def inputs(self, task: str) -> Inputs:
        """A task's texts one after another, in blocks of `max_length` tokens (fewer, where the model cannot
        read so many)."""
        rows, config = self._rows[task], self.pretrained.model.config
        try:
            unlabeled = family.inputs_of(self.tokenizer, rows.texts("text"), config, rows.data.max_length)
        except ValueError as error:
            raise ValueError(f"{rows.where}: {error}") from error
        return Inputs(unlabeled)


def _check_settings(config: Config) -> None:
    for expert in config.experts:
        if expert.data.label is not None:
            raise ValueError(
                f"Language models have no labels to compare with: drop `label` of task `{expert.task}`."
            )
    sampler = config.adapt.get("sampler", "all")
    if sampler != "all":
        raise ValueError(
            f"`sampler: {sampler}` chooses among samples that have one class each; a text has as many "
            "distributions as tokens. Language models take `sampler: all`."
        )


def _names_on_disk(path: str, model) -> dict[str, str]:
    """Name in `LanguageModel` -> tensor name in the checkpoint."""
    checkpoint = Checkpoint.open(path)
    stored = ModelNames(checkpoint.folder).of(checkpoint.files)
    return {f"model.{name}": stored.get(name, name) for name in model.state_dict()}
