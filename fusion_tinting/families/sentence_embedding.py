"""Sentence encoders (sentence-transformers): plain models of transformers, whose vectors are taught.

An expert's own `modules.json` and pooling's `config.json` say how tokens become one vector; else mean.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import cached_file

from fusion_tinting.families.loading import load_partly, require_complete
from fusion_tinting.families.sequence_classification import Backbones, Features, TextEncoder
from fusion_tinting.families.stored import in_files
from fusion_tinting.method.objectives import cosine
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.experts import LoadedExperts

MEAN = "mean"
MODES = {("pooling_mode_mean_tokens",): MEAN, ("pooling_mode_cls_token",): "cls"}
"""Flags of a pooling's older `config.json` -> what a newer one says of its `pooling_mode`."""


class Pooling(nn.Module):
    """`Features` -> vectors (B, d): the mean of a text's tokens, or its first token's. No parameters."""

    def __init__(self, mode: str = MEAN, normalized: bool = False):
        super().__init__()
        self.mode, self.normalized = mode, normalized

    def forward(self, features: Features) -> Tensor:
        """Pool, and scale to length one where the expert does."""
        vectors, mask = features.output.last_hidden_state, features.inputs["attention_mask"].unsqueeze(2)
        vector = (vectors * mask).sum(1) / mask.sum(1) if self.mode == MEAN else vectors[:, 0]
        return F.normalize(vector, dim=1) if self.normalized else vector

    def extra_repr(self) -> str:
        """Return what tells two apart, in the cache of predictions too."""
        return f"{self.mode}, {self.normalized}"


class SentenceEmbedding(Backbones):
    """Encoders are merged, but for a pooler, which embeddings do not use. There is no head to tint."""

    keys: ClassVar[tuple[str, ...]] = ("text", "max_length")
    defaults: ClassVar[Mapping[str, Any]] = {"layer": "block:-1", "lr_tints": 1e-3, "sampler": "all"}
    classes: ClassVar[bool] = False

    def load(self) -> None:
        """Load the pre-trained encoder, and what the experts' files say of their pooling."""
        self.pretrained = self._encoder(PRETRAINED)
        self.experts = LoadedExperts(
            self.models.tasks, self._encoder, in_files(self, AutoModel.from_config)
        )
        self.heads = {task: pooling_of(path) for task, path in self.models.experts.items()}
        model, self.names = self.pretrained.backbone, {}
        for name, parameter in model.named_parameters():
            (self.names[f"backbone.{name}"],) = revert_weight_conversion(model, {name: parameter})

    @property
    def objectives(self) -> Mapping[str, str]:
        """Of a vector the direction counts."""
        return dict.fromkeys(self.models.tasks, cosine.name)

    def check_layer(self, layer: str | None) -> None:
        """Refuse the head."""
        if layer is not None and layer.partition(".")[0] == "head":
            raise ValueError(f"`layer={layer}`: embeddings have no head to tint. Name a block: `block:-1`.")

    def _encoder(self, name: str) -> TextEncoder:
        model, missing = load_partly(AutoModel, path := self.models.paths[name], safetensors=None)
        require_complete(path, model, (tensor for tensor in missing if not tensor.startswith("pooler.")))
        model.pooler = None
        return TextEncoder(model)


def pooling_of(path: str) -> Pooling:
    """Return how an expert, a folder or hub id, makes one vector of its tokens'.

    Raises:
        ValueError: a module of sentence-transformers, or a pooling, that is not known here.
    """
    modules = {m["type"].rpartition(".")[2]: m["path"] for m in _read(path, "modules.json") or ()}
    if strange := sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise ValueError(f"`{path}` has the modules {strange}; expected Transformer, Pooling, Normalize.")
    if not modules:
        return Pooling()
    config = _read(path, f"{modules.get('Pooling')}/config.json") or {}
    flags = tuple(key for key, on in config.items() if on and key.startswith("pooling_mode_"))
    mode = config.get("pooling_mode", MODES.get(flags))
    if mode not in MODES.values():
        raise ValueError(f"`{path}` pools by {mode or flags}; expected one of {list(MODES.values())}.")
    return Pooling(mode, "Normalize" in modules)


def _read(path: str, name: str) -> Any:
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
