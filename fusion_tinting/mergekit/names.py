"""Tensor names as a model has them, whatever its checkpoints call them on disk."""

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

from fusion_tinting.families import family_class, family_of_architecture
from fusion_tinting.families.batch_norm import AS_IT_IS, Form, is_variance, log_variance
from fusion_tinting.families.stored import names_in_model


class ModelNames:
    """The names of the architecture that a checkpoint is of.

    Args:
        folder: of the checkpoint.

    Attributes:
        backbone: its parameters but those of a head.
        encoder: name -> what the parameter is called in the module that is merged, the model's family's.
        tied: name -> the other name of the same tensor, such as LM head and embedding.

    Raises:
        ValueError: an architecture that transformers does not have.
    """

    def __init__(self, folder: Path):
        config = AutoConfig.from_pretrained(folder)
        kind = (config.architectures or ["none"])[0]
        if not hasattr(transformers, kind):
            raise ValueError(
                f"`{folder}` is of the architecture `{kind}`, which transformers does not have."
            )
        with torch.device("meta"):
            self._model = getattr(transformers, kind)(config)
        prefix = f"{self._model.base_model_prefix}."
        self.backbone = [name for name, _ in self._model.named_parameters() if name.startswith(prefix)]
        family = family_class(family_of_architecture(kind) or "causal_lm")
        self.encoder = {name: family.parameter_of(name, prefix) for name in self._model.state_dict()}
        pairs = self._model.all_tied_weights_keys
        self.tied = {**{source: target for target, source in pairs.items()}, **pairs}

    def form(self, name: str) -> Form:
        """Return in which form a tensor is merged: the variance of a batch norm as its logarithm.

        Args:
            name: in the model.
        """
        if not is_variance(name):
            return AS_IT_IS
        return log_variance(self._model.get_submodule(name.rpartition(".")[0]).eps)

    def of(self, stored: Iterable[str]) -> dict[str, str]:
        """Return name in the model -> name among `stored`; raises as `names_in_model`."""
        return names_in_model(self._model, stored)
