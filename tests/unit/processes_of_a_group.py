"""Runs in each of two processes of one gloo group; see test_sharded.py."""

import json
import os

import torch
from lightning import Fabric
from safetensors.torch import save_file
from torch import distributed
from world import make_world

import fusion_tinting as ft
from fusion_tinting.fusionbench.processes import FabricProcesses


def adapt(rank: str, ranks: str, cases: str) -> None:
    """Adapt once for each case, and write what this process ended with to `<case>-<rank>`."""
    store = distributed.FileStore("store", int(ranks))
    distributed.init_process_group("gloo", rank=int(rank), world_size=int(ranks), store=store)
    os.environ |= {"LOCAL_RANK": rank, "WORLD_SIZE": ranks}  # as Lightning's launcher starts processes
    fabric = Fabric(accelerator="cpu", devices=int(ranks), strategy="ddp")
    fabric.launch()
    processes = {"torch": ft.DistributedProcesses(), "fabric": FabricProcesses(fabric)}
    for number, (host, options) in enumerate(json.loads(cases)):
        tinted = make_world().tint(**options, processes=processes[host])
        save_file(tensors_of(tinted), f"{number}-{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()  # or one that ends first can abort the other


def tensors_of(tinted: ft.TintedModel) -> dict[str, torch.Tensor]:
    """What a process ends with: coefficients, tints, merged parameters, history, task vectors held."""
    tensors = {
        **tinted.coefficients,
        **{f"tints.{n}": t for n, t in tinted.tint_modules.state_dict().items()},
    }
    tensors |= {f"merged.{name}": p.data for name, p in tinted.merged.named_parameters()}
    tensors |= {f"expert.{name}": p.data for name, p in tinted.remerged("dogs").merged.named_parameters()}
    tensors |= {"history": tinted.history.values, "held": torch.tensor(tinted.vectors.deltas.shape[1])}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
