"""Runs in each of two processes of one gloo group; see test_sharded.py."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed
from world import make_world

import fusion_tinting as ft


def main(rank: str, ranks: str, folder: str, update: str, storage: str, dtype: str) -> None:
    store = distributed.FileStore(f"{folder}/store", int(ranks))
    distributed.init_process_group("gloo", rank=int(rank), world_size=int(ranks), store=store)
    tinted = make_world().tint(
        update=update,
        layer="blocks.1",
        sampler="all",
        average=True,
        task_vectors={"storage": storage, "dtype": dtype},
        processes=ft.DistributedProcesses(),
    )
    tensors = {
        **tinted.coefficients,
        **{f"tints.{n}": t for n, t in tinted.tint_modules.state_dict().items()},
    }
    tensors |= {f"merged.{name}": p.data for name, p in tinted.merged.named_parameters()}
    tensors |= {f"expert.{name}": p.data for name, p in tinted.remerged("dogs").merged.named_parameters()}
    tensors |= {"history": tinted.history.values, "held": torch.tensor(tinted.vectors.deltas.shape[1])}
    save_file({name: t.contiguous() for name, t in tensors.items()}, Path(folder) / f"{rank}.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()  # or one that ends first can abort the other


if __name__ == "__main__":
    main(*sys.argv[1:])
