"""Causal language models: the whole model is merged, and its next-token distributions are taught."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fusion_tinting.families.loading import require_complete


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
    model, told = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    require_complete(path, model, told["missing_keys"])
    return model.eval()


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
