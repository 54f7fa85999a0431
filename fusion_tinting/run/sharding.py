"""FSDP2: one model over several processes, of which each holds some rows of every tensor.

A block is gathered when it runs and dropped afterward, so that a process holds 1/N of the model, and of θ₀,
the experts and the tints, beside one block. See torch.distributed.fsdp and `fusion_tinting.method.shards`.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from fusion_tinting.method.blocks import blocks_of_all
from fusion_tinting.method.precision import FULL
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.method.tints import AUTO, HOOKS
from fusion_tinting.run.processes import Processes


def require_shardable(settings: Settings, processes: Processes) -> None:
    """Refuse settings that processes cannot follow who share one model.

    Args:
        settings: of the adaptation.
        processes: where it will run.

    Raises:
        ValueError: naming the setting, and what to do.
    """
    if not processes.shards:
        return
    if settings.layer == AUTO:
        raise ValueError(
            "`layer=auto` tries layers on copies of the model, of which there can be none where several "
            "processes share one. Name the layer, such as `block:-1`."
        )
    if settings.task_vectors["dtype"] == "fp16":
        raise ValueError(
            "`task_vectors.dtype=fp16` keeps whole rows, where several processes share one model. Leave it "
            "out: task vectors take no more than the checkpoints' own precision then."
        )
    if settings.task_vectors["storage"] == "mmap":
        raise ValueError(
            "`task_vectors.storage=mmap` keeps whole rows, where several processes share one model. Use "
            "`memory`, `host` or `stream`."
        )


def shard(model: TintedNetwork, processes: Processes) -> None:
    """Share a model out over processes, in place: its encoder block by block, and the tints in it.

    Heads, buffers and tensors without dimensions stay whole in every process.

    Args:
        model: untrained.
        processes: who share it; nothing happens where they do not.
    """
    if not processes.shards:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # whose output we never change
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    half = None if model.precision == FULL else model.precision
    for parts, dtype in ((_of_encoder(model.encoder), None), (_tints(model), half)):
        policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for part in parts:
            fully_shard(
                part, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=_scalars(part)
            )
            assert isinstance(part, FSDPModule)
            part.set_gradient_divide_factor(1.0)  # each process has its share of the mean: they are summed
            part.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides


def _of_encoder(encoder: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of an encoder, inner ones first, and the encoder itself."""
    names = sorted(blocks_of_all(encoder), key=lambda name: -name.count("."))
    yield from (module for module in map(encoder.get_submodule, names) if _runs(module))
    yield encoder


def _tints(model: TintedNetwork) -> Iterator[nn.Module]:
    """Yield the tints that stand in the encoder, with hooks of their own: FSDP2's are a module's own."""
    for tint in model.tint_modules if model.tinted is not None and not model.tinted.in_head else ():
        for part in tint.modules():
            vars(part).update({kind: copy.copy(vars(part)[kind]) for kind in HOOKS})
        if _runs(tint):
            yield tint


def _runs(module: nn.Module) -> bool:
    """Return whether a module is called itself, as a list of modules is not."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _scalars(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in module.parameters() if parameter.ndim == 0}
