"""The precision in which models run: bfloat16 where all of them are of it, else float32.

λ, its gradient, the tints and their optimizer are float32 in any case: a step of 1e-3 is less than what
bfloat16 can tell apart near one. A tint is cast when it is used, and its gradient flows through the cast.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fusion_tinting.method.models import rebound, released
from fusion_tinting.method.shards import is_sharded

FULL, HALF = torch.float32, torch.bfloat16


def precision_of(models: Iterable[nn.Module]) -> torch.dtype:
    """Return bfloat16 if every floating-point parameter is of it, else float32.

    What is of float16 runs in float32: its gradients would have no range there. Of a head without
    parameters its buffers count.

    Args:
        models: that run one after another: an encoder and heads.
    """
    tensors = chain.from_iterable(list(model.parameters()) or model.buffers() for model in models)
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return HALF if kinds == {HALF} else FULL


def working(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """Return a model to compute with: a copy unless it was released, in `eval` mode, without gradients.

    Args:
        model: an encoder, a head or both.
        precision: as `precision_of` returns it.
    """
    own = model if released(model) else deepcopy(model)
    own = own.float() if precision == FULL else own
    return own.requires_grad_(False).eval()


def fitting(inputs: Any, precision: torch.dtype) -> Any:
    """Return inputs with their float32 tensors in the precision of the model that takes them.

    Args:
        inputs: a tensor, or a mapping, tuple or list that may hold such.
        precision: of the model.
    """
    if precision == FULL:
        return inputs
    if isinstance(inputs, Tensor):
        return inputs.to(precision) if inputs.dtype == FULL else inputs
    if isinstance(inputs, Mapping):
        return {name: fitting(value, precision) for name, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(fitting(value, precision) for value in inputs)
    return inputs


def cast(module: nn.Module, precision: torch.dtype) -> nn.Module:
    """Return a twin of a tint whose parameters are casts of the tint's, through which gradients flow.

    Nothing is set in the tint itself, so that threads and gradient checkpointing see it stand still.

    Args:
        module: with parameters of float32.
        precision: of the twin's.
    """
    if precision == FULL or any(map(is_sharded, module.parameters())):  # FSDP2 casts what it gathers
        return module
    return _twin(module, precision, {})


def _twin(module: nn.Module, precision: torch.dtype, made: dict[int, Any]) -> nn.Module:
    if id(module) not in made:
        twin: nn.Module = object.__new__(type(module))
        made[id(module)] = twin
        parameters = {name: _casted(p, precision, made) for name, p in module._parameters.items()}
        children = {
            name: None if child is None else _twin(child, precision, made)
            for name, child in module._modules.items()
        }
        attributes = {key: rebound(value, module, twin) for key, value in vars(module).items()}
        twin.__dict__ = {**attributes, "_parameters": parameters, "_modules": children}
        if isinstance(twin, (nn.Embedding, nn.EmbeddingBag)):
            twin.sparse = False  # no sparse gradient flows through a cast
    return made[id(module)]  # type: ignore[no-any-return]


def _casted(parameter: nn.Parameter | None, precision: torch.dtype, made: dict[int, Any]) -> Tensor | None:
    if parameter is None or parameter.dtype != FULL:
        return parameter
    if id(parameter) not in made:  # one that two modules share is cast once
        made[id(parameter)] = parameter.to(precision)
    return made[id(parameter)]  # type: ignore[no-any-return]
