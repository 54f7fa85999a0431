"""What the families share in loading a model of transformers."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel


def whole(auto: type, path: str) -> PreTrainedModel:
    """A model from a folder or hub id, as an auto class of transformers makes it; in float32, dropout off.

    Raises:
        ValueError: tensors that the checkpoint lacks, named.
    """
    model, told = auto.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    require_complete(path, model, told["missing_keys"])
    return model.eval()


def require_complete(path: str, model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a model of which transformers made tensors up that its checkpoint lacks.

    Raises:
        ValueError: naming the checkpoint and some of the tensors.
    """
    if lacking := sorted(missing):
        raise ValueError(
            f"`{path}` is no complete {type(model).__name__}: it lacks {len(lacking)} tensor(s), "
            f"{lacking[:3]}."
        )
