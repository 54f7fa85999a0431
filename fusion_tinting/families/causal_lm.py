"""Causal language models: the whole model is merged, and its next-token distributions are taught."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families.family import BY_ARCHITECTURE
from fusion_tinting.families.loading import load_whole
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.stored import in_files
from fusion_tinting.families.texts import TextFamily, readable
from fusion_tinting.method.models import release
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.method.tints import AUTO, HEAD, find_layer
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.unlabeled import Unlabeled


class LanguageModel(nn.Module):
    """Token ids (B, T) -> next-token logits (B, V, T): classes come second, as everywhere here."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of every position."""
        return self.model(input_ids=input_ids, use_cache=False).logits.transpose(1, 2)


class WholeModels(TextFamily):
    """Models that are merged whole, their LM head too: the heads of the tasks are the identity.

    Class attributes:
        auto: of transformers, which loads such a model.
        encoder: the module around it, with the model as its only child, `model`.
    """

    auto: ClassVar[type]
    encoder: ClassVar[type[nn.Module]]
    defaults: ClassVar[Mapping[str, Any]] = {"sampler": "all", "objective": "soft", "batch_size": 4}

    def load(self) -> None:
        """Load the pre-trained model; the experts are loaded one at a time."""
        self.pretrained = self._encoder(PRETRAINED)
        self.experts = self._loaded()
        self.heads = {task: nn.Identity() for task in self.models.tasks}
        self.names = names_on_disk(self.pretrained.model)

    @cached_property
    def layers(self) -> Mapping[str, str]:
        """`head` is the LM head, a layer of the model itself."""
        return {HEAD: head_name(self.pretrained.model)}

    def check_layer(self, layer: str | None) -> None:
        """Refuse a layer that shares a tensor with the LM head, and `auto`."""
        if layer == AUTO:
            raise ValueError("`layer=auto` is not for language models: name a layer, as `block:-1`.")
        named = find_layer(self.pretrained, self.layers.get(layer, layer))
        if named is not None and named.name != self.layers[HEAD]:
            require_untied(self.pretrained.model, named.name)

    def _encoder(self, name: str) -> nn.Module:
        model = self.models.opened(name)
        if model is not None:
            return self.encoder(model)
        encoder = self.encoder(load_whole(self.auto, self.models.paths[name]))
        return encoder if name == PRETRAINED else release(encoder)

    def _loaded(self) -> LoadedExperts:
        return LoadedExperts(self.models.tasks, self._encoder, in_files(self, self.auto.from_config))


class CausalLM(WholeModels):
    """Language models that are taught each next token of a text by the expert's distribution of it."""

    keys: ClassVar[tuple[str, ...]] = ("text", "max_length")
    recipes = BY_ARCHITECTURE
    classes: ClassVar[bool] = False
    auto, encoder = AutoModelForCausalLM, LanguageModel

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the texts one after another, in blocks of `max_length` tokens.

        Raises:
            ValueError: a row without text, or too few tokens in all.
        """
        try:
            return inputs_of(
                self.tokenizer, rows.texts("text"), self.pretrained.model.config, rows.max_length
            )
        except ValueError as error:
            raise ValueError(f"{rows.where}: {error}") from error


def load(path: str) -> PreTrainedModel:
    """Load a causal language model in float32, with dropout off.

    Args:
        path: folder or hub id.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: tensors that the checkpoint lacks, named.
    """
    return load_whole(AutoModelForCausalLM, path)


def head_name(model: PreTrainedModel) -> str:
    """Return the name, in `LanguageModel`, of the layer that gives the logits: what `layer: head` tints.

    Where it shares its weight with the embeddings, its tint has a weight of its own.

    Args:
        model: of transformers.

    Raises:
        ValueError: a model without such a layer.
    """
    head = model.get_output_embeddings()
    names = [f"model.{name}" for name, module in model.named_modules() if module is head]
    if head is None or not names:
        raise ValueError(f"{type(model).__name__} has no LM head; it is no causal language model.")
    return names[0]


def require_untied(model: PreTrainedModel, layer: str) -> None:
    """Refuse to tint a layer that shares a tensor with another.

    Args:
        model: of transformers.
        layer: its name in `LanguageModel`.

    Raises:
        ValueError: the embedding of a model that computes its logits with it, or that has an encoder and a
            decoder with one embedding; or a layer around it.
    """
    every, inside = LanguageModel(model).named_parameters(remove_duplicate=False), f"{layer}."
    tensors = {id(p) for p in LanguageModel(model).get_submodule(layer).parameters()}
    others = [name for name, p in every if id(p) in tensors and not name.startswith(inside)]
    head = head_name(model)
    if any(name.startswith(f"{head}.") for name in others):
        raise ValueError(
            f"`layer={layer}` shares a tensor with the LM head. Tint the head itself (`layer: head`): it "
            "then gets a tensor of its own. Or tint a block."
        )
    if others:
        raise ValueError(f"`layer={layer}` shares a tensor with `{others[0]}`. Tint the head or a block.")


def inputs_of(tokenizer: Any, texts: Sequence[str], config: PreTrainedConfig, max_length: int) -> Unlabeled:
    """Return texts one after another, in blocks of tokens.

    Args:
        tokenizer: of the experts.
        texts: of any lengths.
        config: of the base, which may read fewer tokens.
        max_length: tokens of a block.

    Raises:
        ValueError: a token that the model does not know, or too few of them; see `blocks_of`.
    """
    tokens = tokenizer(list(texts), verbose=False)["input_ids"]
    highest = max((max(text) for text in tokens if text), default=0)
    if highest >= config.vocab_size:
        raise ValueError(
            f"The tokenizer of the experts has a token {highest}; the base knows {config.vocab_size}."
        )
    return Unlabeled(blocks_of(tokens, readable(config, max_length), tokenizer.eos_token_id))


def names_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """Return parameter name in `LanguageModel` -> tensor name in a checkpoint as transformers writes it."""
    names = {}
    for name, tensor in model.named_parameters():
        (names[f"model.{name}"],) = revert_weight_conversion(model, {name: tensor})
    return names


def blocks_of(tokens: list[list[int]], length: int, separator: int | None) -> list[Tensor]:
    """Cut texts, one after another, into blocks of tokens; no padding: every position counts.

    Args:
        tokens: token ids of each text.
        length: tokens of a block.
        separator: the end-of-text id that stands after every text, if there is one.

    Raises:
        ValueError: fewer tokens than two blocks.
    """
    last = [] if separator is None else [separator]
    stream = [i for text in tokens for i in (text if text[-1:] == last else [*text, *last])]
    if len(stream) < 2 * length:
        raise ValueError(
            f"The texts hold {len(stream)} tokens. Two blocks of {length} are the least: one teaches, one "
            "is kept aside. Give more text, or a smaller `max_length`."
        )
    return list(torch.tensor(stream[: len(stream) // length * length]).view(-1, length))
