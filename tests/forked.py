"""FusionBench's command in processes that start in a moment: forked from one that has imported it."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["fusion_tinting.fusionbench", "fusion_bench.scripts.cli", "fusion_bench.taskpool.clip_vision.taskpool"]
)


def start(arguments: list[str], folder: Path, environment: dict[str, str]):
    """Start `fusion_bench` with these arguments in a folder; return the process, and its output's pipe."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=fusion_bench, args=(arguments, folder, environment, sender))
    process.start()
    sender.close()
    return process, receiver


def fusion_bench(
    arguments: list[str], folder: Path, environment: dict[str, str], output: Connection
) -> None:
    """The command, within a process that was forked."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["fusion_bench", *arguments]
    from fusion_bench.scripts.cli import _hydra_main

    _hydra_main()
