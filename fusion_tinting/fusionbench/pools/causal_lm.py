"""Causal language models: FusionBench's `CausalLMPool`."""

from collections.abc import Mapping
from functools import cached_property

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from fusion_tinting.families import causal_lm as family
from fusion_tinting.families import texts
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tints import AUTO, HEAD, resolve_layer
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.unlabeled import Unlabeled

TEXT_LENGTH = 256
"""Tokens of the blocks that texts are cut into, where the tokenizer names no smaller `model_max_length`."""


class CausalLMFamily(PoolFamily):
    """Whole models are merged; each next token of a text is taught by the expert's distribution of it.

    A model is known by its folder or hub id. A data set has its texts in its only column of strings.
    FusionBench's task pools for language models score by generation and know no tints: name none, and a run
    ends with the agreement with the experts on texts kept aside.
    """

    model_class = texts.TintedText

    @property
    def layers(self) -> Mapping[str, str]:
        """`head` is the LM head, a layer of the model itself."""
        return {HEAD: family.head_name(self.pretrained.model)}

    @cached_property
    def tokenizer(self):
        """The pool's."""
        return self.pool.load_tokenizer()

    @cached_property
    def configs(self) -> Mapping[str, PreTrainedConfig]:
        """Model name -> its checkpoint's configuration."""
        names = self.pool.all_model_names
        return {name: AutoConfig.from_pretrained(self.pool.get_model_path(name)) for name in names}

    def check(self) -> None:
        """Refuse models of several architectures, and a tokenizer that is not theirs.

        Raises:
            ValueError: naming the model.
        """
        base, experts = self.configs[PRETRAINED], {task: self.configs[task] for task in self.tasks}
        texts.same_architecture(base, experts)
        texts.require_known_tokens(self.tokenizer, base)

    def load(self) -> None:
        """Load the pre-trained model; the experts are loaded one at a time."""
        self.pretrained = self._model(PRETRAINED)
        self.experts = LoadedExperts(self.tasks, self._model)
        self.heads = {task: nn.Identity() for task in self.tasks}
        self.tensor_names = family.names_on_disk(self.pretrained.model)

    def check_layer(self, layer: str | None) -> None:
        """Refuse a layer that shares a tensor with the LM head.

        Raises:
            ValueError: naming the layer.
        """
        if layer == AUTO:
            raise ValueError("`method.layer=auto` is not for language models: name a layer, as `block:-1`.")
        named = resolve_layer(self.pretrained, self.layers.get(layer, layer))
        if named not in (None, self.layers[HEAD]):
            family.require_untied(self.pretrained.model, named)

    def unlabeled(self, task: str, split: str) -> Unlabeled:
        """A task's texts one after another, in blocks of tokens.

        Raises:
            ValueError: an empty split, none or several columns of texts, or too few tokens.
        """
        dataset = self.dataset(task, split)
        columns = [name for name, feature in dataset.features.items() if texts.is_text(feature)]
        if len(columns) != 1:
            raise ValueError(
                f"Expected one column of texts in the {split} split of `{task}`. Found {columns}. Where a "
                "data set has several, name one: `columns: [text]` of Parquet files, or `select_columns`."
            )
        length, config = min(self.tokenizer.model_max_length, TEXT_LENGTH), self.configs[PRETRAINED]
        try:
            return family.inputs_of(self.tokenizer, dataset[columns[0]], config, length)
        except ValueError as error:
            raise ValueError(f"The {split} split of `{task}`: {error}") from error

    def _model(self, name: str) -> family.LanguageModel:
        return family.LanguageModel(family.load(self.pool.get_model_path(name)))
