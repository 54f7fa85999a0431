"""Causal language models: the whole model is merged, and its next-token distributions are taught."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families.loading import whole
from fusion_tinting.run.unlabeled import Unlabeled


class LanguageModel(nn.Module):
    """Token ids (B, T) -> next-token logits (B, V, T): classes come second, as everywhere here."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits.transpose(1, 2)


def load(path: str) -> PreTrainedModel:
    """A causal language model from a folder or hub id, in float32, with dropout off.

    Raises:
        ValueError: tensors that the checkpoint lacks, named.
    """
    return whole(AutoModelForCausalLM, path)


def head_name(model: PreTrainedModel) -> str:
    """The name, in `LanguageModel`, of the layer that gives the logits: what `layer: head` tints.

    Where it shares its weight with the embeddings, its tint has a weight of its own.
    """
    head = model.get_output_embeddings()
    names = [f"model.{name}" for name, module in model.named_modules() if module is head]
    if head is None or not names:
        raise ValueError(f"{type(model).__name__} has no LM head; it is no causal language model.")
    return names[0]


def require_untied(model: PreTrainedModel, layer: str) -> None:
    """Refuse to tint a layer, named as in `LanguageModel`, that shares a tensor with the LM head.

    Raises:
        ValueError: the embedding of a model that computes its logits with it, or a layer around it.
    """
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    if any(id(p) in head for p in LanguageModel(model).get_submodule(layer).parameters()):
        raise ValueError(
            f"`layer={layer}` shares a tensor with the LM head. Tint the head itself (`layer: head`): it "
            "then gets a tensor of its own. Or tint a block."
        )


def inputs_of(tokenizer, texts: Sequence[str], config: PreTrainedConfig, max_length: int) -> Unlabeled:
    """Texts one after another, in blocks of `max_length` tokens, or as many as the model can read.

    Raises:
        ValueError: a token that the model does not know, or too few of them; see `blocks_of`.
    """
    tokens = tokenizer(list(texts), verbose=False)["input_ids"]
    highest = max((max(text) for text in tokens if text), default=0)
    if highest >= config.vocab_size:
        raise ValueError(
            f"The tokenizer of the experts has a token {highest}; the base knows {config.vocab_size}."
        )
    length = min(max_length, getattr(config, "max_position_embeddings", max_length))
    return Unlabeled(blocks_of(tokens, length, tokenizer.eos_token_id))


def names_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """Parameter name in `LanguageModel` -> tensor name in a checkpoint as transformers writes it."""
    names = {}
    for name, tensor in model.named_parameters():
        (names[f"model.{name}"],) = revert_weight_conversion(model, {name: tensor})
    return names


def blocks_of(tokens: list[list[int]], length: int, separator: int | None) -> list[Tensor]:
    """Texts one after another, cut into blocks of `length` tokens; no padding: every position counts.

    Args:
        tokens: token ids of each text.
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
