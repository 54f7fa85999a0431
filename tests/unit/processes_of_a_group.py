"""Runs in each of two processes of one gloo group; see test_sharded.py."""

import json
import os

import torch
from lightning import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch import distributed
from world import make_world

import fusion_tinting as ft
from fusion_tinting.fusionbench.processes import FabricProcesses
from fusion_tinting.method.shards import gathered


def adapt(rank: str, ranks: str, cases: str) -> None:
    """Adapt once for each case, and write what this process ended with to `<case>-<rank>`."""
    store = distributed.FileStore("store", int(ranks))
    distributed.init_process_group("gloo", rank=int(rank), world_size=int(ranks), store=store)
    os.environ |= {"LOCAL_RANK": rank, "WORLD_SIZE": ranks}  # as Lightning's launcher starts processes
    processes = {
        "torch": ft.DistributedProcesses(),
        "torch, one model": ft.DistributedProcesses(shards=True),
        "fabric": FabricProcesses(launched(int(ranks), "ddp")),
        "fabric, one model": FabricProcesses(launched(int(ranks), ModelParallelStrategy(lambda m, _: m))),
    }
    for number, (host, options) in enumerate(json.loads(cases)):
        tinted = make_world().tint(**options, processes=processes[host])
        save_file(tensors_of(tinted), f"{number}-{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()  # or one that ends first can abort the other


def launched(ranks: int, strategy: str | ModelParallelStrategy) -> Fabric:
    """Lightning's processes of a strategy."""
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy)
    fabric.launch()
    return fabric


def tensors_of(tinted: ft.TintedModel) -> dict[str, torch.Tensor]:
    """What a process ends with: coefficients, tints, merged parameters, history, numbers of θ₀ held."""
    tints, merged = gathered(tinted.tint_modules.state_dict()), gathered(tinted.merged.state_dict())
    base = tinted.vectors.kept.base
    held = base.numel() if isinstance(base, torch.Tensor) else sum(t.numel() for t in base.values())
    with torch.no_grad():
        logits = {f"logits.{task}": tinted(torch.ones(2, 5), task) for task in tinted.tasks}
    tensors = {
        **tinted.coefficients,
        **logits,
        **{f"tints.{name}": tensor for name, tensor in tints.items()},
        **{f"merged.{name}": tensor for name, tensor in merged.items()},
        "history": tinted.history.values,
        "held": torch.tensor(held),
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
