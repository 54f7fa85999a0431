"""Runs in each of two processes of one gloo group; see test_sharded.py."""

import json
import os

import torch
from lightning import Fabric
from lightning.fabric.strategies import Strategy
from safetensors.torch import save_file
from torch import distributed
from world import World, make_world

import fusion_tinting as ft
from fusion_tinting.fusionbench.processes import FabricProcesses, OneModel
from fusion_tinting.method.shards import gathered
from fusion_tinting.run import checkpoint


def adapt(rank: str, ranks: str, cases: str) -> None:
    """Adapt once for each case, and write what this process ended with to `<case>-<rank>`."""
    join(rank, ranks)
    processes = {
        "torch": ft.DistributedProcesses(),
        "torch, one model": ft.DistributedProcesses(shards=True),
        "fabric": FabricProcesses(launched(int(ranks), "ddp")),
        "fabric, one model": FabricProcesses(launched(int(ranks), OneModel())),
    }
    for number, (host, kind, options) in enumerate(json.loads(cases)):
        tinted = world_of(kind).tint(**options, processes=processes[host])
        save_file(tensors_of(tinted), f"{number}-{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()  # or one that ends first can abort the other


def resume(rank: str, ranks: str, options: str) -> None:
    """Break a run off, in `two`, and continue one, in `one`; what the latter ends with is written."""
    join(rank, ranks)
    processes = ft.DistributedProcesses(shards=True)
    break_off(processes, "two", json.loads(options))
    tinted = make_world().tint(**json.loads(options), processes=processes, run_dir="one")
    save_file(tensors_of(tinted), f"resumed-{rank}.safetensors")
    again = make_world().tint(**json.loads(options), processes=processes, run_dir="one")  # the finished run
    save_file(tensors_of(again), f"loaded-{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


def die(rank: str, ranks: str) -> None:
    """Let the second process die in the second step; print what the first one is told."""
    join(rank, ranks)

    def on_step(step: int, _: object) -> None:
        if step == 1 and rank == "1":
            os._exit(0)

    try:
        make_world().tint(processes=ft.DistributedProcesses(shards=True), on_step=on_step, layer="blocks.1")
    except ConnectionError as error:
        print(error, flush=True)
    os._exit(0)  # without the other there is no orderly end


def break_off(processes: ft.Processes | None, run_dir: str, options: dict) -> None:
    """Adapt until an error of the caller's in the third step; a checkpoint of two is left."""

    def on_step(step: int, _: object) -> None:
        if step == 2:
            raise RuntimeError("enough")

    every, checkpoint.EVERY = checkpoint.EVERY, 2
    try:
        make_world().tint(**options, processes=processes, run_dir=run_dir, on_step=on_step)
    except RuntimeError as error:
        assert str(error) == "enough"
    finally:
        checkpoint.EVERY = every


def join(rank: str, ranks: str) -> None:
    """Begin the group."""
    store = distributed.FileStore("store", int(ranks))
    distributed.init_process_group("gloo", rank=int(rank), world_size=int(ranks), store=store)
    os.environ |= {"LOCAL_RANK": rank, "WORLD_SIZE": ranks}  # as Lightning's launcher starts processes


def launched(ranks: int, strategy: str | Strategy) -> Fabric:
    """Lightning's processes of a strategy."""
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy=strategy)
    fabric.launch()
    return fabric


def world_of(kind: str) -> World:
    """The small world, in a precision."""
    world = make_world()
    if kind == "bfloat16":
        for model in (world.pretrained, *world.experts.values(), *world.heads.values()):
            model.bfloat16()
    return world


def tensors_of(tinted: ft.TintedModel) -> dict[str, torch.Tensor]:
    """What a process ends with: coefficients, tints, merged parameters, history, numbers of θ₀ held."""
    tints, merged = gathered(tinted.tint_modules.state_dict()), gathered(tinted.merged.state_dict())
    kept = tinted.vectors.kept
    held = sum(t.numel() for t in kept.base.values()) if tinted.vectors.apart else kept.base.numel()
    with torch.no_grad():
        logits = {f"logits.{task}": tinted(torch.ones(2, 5), task).float() for task in tinted.tasks}
    tensors = {
        **tinted.coefficients,
        **logits,
        **{f"tints.{name}": tensor for name, tensor in tints.items()},
        **{f"merged.{name}": tensor for name, tensor in merged.items()},
        "history": tinted.history.values,
        "held": torch.tensor(held),
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
