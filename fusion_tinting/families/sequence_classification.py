"""Text classifiers of transformers (BERT, RoBERTa, DistilBERT, DeBERTa, GPT-2, Llama...): features, heads.

Such a model is a backbone and the rest, which pools and classifies in each architecture's own way. The rest
is run as it is, with a stand-in that gives back what the backbone has said: none needs code here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families.loading import require_complete
from fusion_tinting.run.experts import LoadedExperts


class Features(NamedTuple):
    """What a head reads: the backbone's output and the tokens it came from."""

    output: Any
    inputs: Mapping[str, Tensor]


class TextEncoder(nn.Module):
    """Tokens (keyword arguments) -> `Features`."""

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: Tensor) -> Features:
        return Features(self.backbone(**inputs), inputs)


class TextHead(nn.Module):
    """`Features` -> logits (B, labels): the whole model but its backbone.

    Args:
        pooler: the backbone's, where it belongs to the head; see `split`.
    """

    def __init__(self, rest: PreTrainedModel, pooler: nn.Module | None = None):
        super().__init__()
        self.rest, self.pooler = rest, pooler

    def forward(self, features: Features) -> Tensor:
        said = features.output
        if self.pooler is not None:
            said = type(said)(**{**said, "pooler_output": self.pooler(said.last_hidden_state)})
        stand_in = getattr(self.rest, self.rest.base_model_prefix)
        stand_in.says = said
        try:
            return self.rest(**features.inputs).logits
        finally:
            stand_in.says = None


class _StandIn(nn.Module):
    says: Any = None

    def forward(self, *_, **__) -> Any:
        return self.says


def load(path: str, base_of: bool = False, pad_token_id: int | None = None) -> PreTrainedModel:
    """A classifier from a folder or hub id, in float32, with dropout off.

    Args:
        base_of: whether only its backbone is wanted, so that a bare or a masked language model will do; a
            pooler that such a model lacks is then None.
        pad_token_id: the tokenizer's, for a model that does not know which text of a batch ends where.

    Raises:
        ValueError: tensors that the checkpoint lacks, named.
    """
    model, told = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    prefix = f"{model.base_model_prefix}."
    missing = sorted(n for n in told["missing_keys"] if n.startswith(prefix) or not base_of)
    if base_of and missing and all(name.startswith(f"{prefix}pooler.") for name in missing):
        getattr(model, model.base_model_prefix).pooler, missing = None, []
    require_complete(path, model, missing)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = pad_token_id
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # of keys and values, which only generation needs
    return model.eval()


def has_pooler(model: PreTrainedModel) -> bool:
    """Whether a model's backbone holds a pooler, as BERT's does."""
    return getattr(getattr(model, model.base_model_prefix), "pooler", None) is not None


def split(model: PreTrainedModel, pooled: bool = True) -> tuple[TextEncoder, TextHead]:
    """Take a model apart; it is of no use by itself afterwards.

    Args:
        pooled: whether a pooler in the backbone is merged with it. It cannot be where the base, a masked
            language model, has none: then every expert's belongs to its head.
    """
    prefix = model.base_model_prefix
    backbone, pooler = getattr(model, prefix), None
    if has_pooler(model) and not pooled:
        pooler, backbone.pooler = backbone.pooler, None
    setattr(model, prefix, _StandIn())
    return TextEncoder(backbone), TextHead(model, pooler)


def names_on_disk(model: PreTrainedModel, pooled: bool = True) -> dict[str, str]:
    """Name in `TextEncoder`, or `head.` and name in `TextHead`, -> tensor name on disk; before `split`."""
    prefix, names = f"{model.base_model_prefix}.", {}
    for name, tensor in model.state_dict().items():
        (stored,) = revert_weight_conversion(model, {name: tensor})
        short = name.removeprefix(prefix)
        if short == name:
            names[f"head.rest.{name}"] = stored
        elif short.startswith("pooler.") and not pooled:
            names[f"head.{short}"] = stored
        else:
            names[f"backbone.{short}"] = stored
    return names


class Parts(NamedTuple):
    """Models as `tint` takes them, and `names_on_disk` of them all."""

    pretrained: TextEncoder
    experts: Mapping[str, TextEncoder]
    heads: dict[str, TextHead]
    names: dict[str, str]


def taken_apart(base: PreTrainedModel, experts: Mapping[str, Callable[[], PreTrainedModel]]) -> Parts:
    """Encoders to merge and a head for every task.

    Args:
        base: a classifier, or what `load` gives with `base_of`.
        experts: task -> what loads its classifier, as often as it is wanted.
    """
    pooled, heads, names = has_pooler(base), {}, {}
    for task, load_expert in experts.items():
        model = load_expert()
        names |= names_on_disk(model, pooled)
        _, heads[task] = split(model, pooled)
    loaded = LoadedExperts(list(experts), lambda task: split(experts[task](), pooled)[0])
    return Parts(split(base)[0], loaded, heads, names)
