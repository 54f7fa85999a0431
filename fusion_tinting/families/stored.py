"""Merged tensors of models in their safetensors files, for `task_vectors.storage: stream`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from fusion_tinting.families.batch_norm import MergedBatchNorm, log_variance
from fusion_tinting.families.family import Family
from fusion_tinting.families.loading import files_of, reachable
from fusion_tinting.run.files import opened
from fusion_tinting.run.stored import StoredTensors

Make = Callable[[Any], PreTrainedModel]
"""Configuration -> a model of transformers."""


def in_files(family: Family, make: Make) -> Callable[[str], StoredTensors]:
    """Return what gives the merged tensors of a task's expert, or of the pre-trained model, in their files.

    Args:
        family: whose models are loaded.
        make: gives such a model from its configuration.
    """

    def stored(name: str) -> StoredTensors:
        wanted = [tensor for tensor, _ in family.pretrained.named_parameters() if tensor in family.names]
        path = family.models.paths[name]
        return StoredTensors(_places(path, make, family.parameter_of, wanted), _forms(family.pretrained))

    return stored


def _places(
    path: str, make: Make, parameter_of: Callable[[str, str], str], wanted: Iterable[str]
) -> dict[str, tuple[Path, str]]:
    """Return parameter of the encoder -> (file, name in it)."""
    files = {name: file for file in files_of(path) for name in opened(file).keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = make(reachable(AutoConfig.from_pretrained, path))
    prefix, names = f"{model.base_model_prefix}.", names_in_model(model, files) if files else {}
    tied = model.all_tied_weights_keys
    names |= {name: names[other] for name, other in tied.items() if name not in names and other in names}
    names |= {other: names[name] for name, other in tied.items() if other not in names and name in names}
    found = {parameter_of(name, prefix): (files[stored], stored) for name, stored in names.items()}
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"`task_vectors.storage: stream` reads `{path}` tensor by tensor from safetensors files, which "
            f"lack {len(missing)} of them: {missing[:3]}. Save it anew with `save_pretrained`, or use "
            "`memory`."
        )
    return {name: found[name] for name in wanted}


def _forms(encoder: nn.Module) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return parameter -> what makes it of the stored tensor, where that is in another form."""
    norms = {
        name: module for name, module in encoder.named_modules() if isinstance(module, MergedBatchNorm)
    }
    return {f"{name}.log_variance": log_variance(module.eps).merged for name, module in norms.items()}


def names_in_model(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Return name in a model -> name among `stored`; names that the model has not stay as they are.

    A base may be the bare model (`h.0.…`) and its experts not (`transformer.h.0.…`), older checkpoints of
    BERT say `LayerNorm.gamma`: transformers knows all of that when it loads them, and is asked here.

    Args:
        model: of transformers; on the meta device will do.
        stored: names in its files.

    Raises:
        ValueError: tensors that transformers changes when it loads them.
    """
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    prefix, have, names = model.base_model_prefix, model.state_dict(), {}
    for name in sorted(stored):
        in_model, converted = rename_source_key(name, renamings, converters, prefix, have)
        if converted or in_model in names:
            raise ValueError(
                f"`{name}` is stored in another form than {type(model).__name__} computes with "
                f"(as `{in_model}`): such models cannot be merged tensor by tensor."
            )
        names[in_model] = name
    return names
