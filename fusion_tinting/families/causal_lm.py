"""Causal language models: the whole model is merged, and its next-token distributions are taught."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


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
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"`{path}` is no complete {type(model).__name__}: it lacks {len(missing)} tensor(s), "
            f"{missing[:3]}."
        )
    return model.eval()


def head_name(model: PreTrainedModel) -> str:
    """The name, in `LanguageModel`, of the layer that gives the logits: what `layer: head` tints.

    Where it shares its weight with the embeddings, its tint has a weight of its own.
    """
    head = model.get_output_embeddings()
    return next(f"model.{name}" for name, module in model.named_modules() if module is head)


def names_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """Name in `LanguageModel` -> tensor name in the model's checkpoint."""
    names = {}
    for name, tensor in model.state_dict().items():
        (stored,) = revert_weight_conversion(model, {name: tensor})
        names[f"model.{name}"] = stored
    return names


def blocks_of(tokens: list[list[int]], length: int, separator: int | None) -> list[dict[str, Tensor]]:
    """Texts one after another, cut into blocks of `length` tokens; no padding: every position counts.

    Args:
        tokens: token ids of each text.
        separator: the end-of-text id that stands between texts, if there is one.

    Raises:
        ValueError: fewer tokens than one block.
    """
    stream = [i for text in tokens for i in ([*text, separator] if separator is not None else text)]
    length = min(length, len(stream))
    if length < 2:
        raise ValueError("The texts hold fewer than two tokens.")
    cut = range(0, len(stream) - length + 1, length)
    return [{"input_ids": torch.tensor(stream[start : start + length])} for start in cut]
