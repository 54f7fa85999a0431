"""Processes of one run: how a command finds those that `torchrun` has started, and who of them is gone."""

import os
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed

from fusion_tinting.run.processes import DistributedProcesses, Processes

ROLL_CALL = 5.0
"""Seconds in which those who are still there answer."""

P = ParamSpec("P")
R = TypeVar("R")


def started() -> Processes:
    """Return the processes that `torchrun` has started, who share one model; without it this one alone.

    Each has a GPU of its own, where there are any.

    Raises:
        ValueError: more processes than this machine has GPUs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes("cuda" if gpus else "cpu")
    place = int(os.environ["LOCAL_RANK"])
    if gpus and place >= gpus:
        raise ValueError(
            f"There are {gpus} GPU(s) here, and more processes: each needs one of its own. Start `torchrun "
            f"--nproc-per-node {gpus}`."
        )
    device = torch.device("cuda", place) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if gpus else "gloo")
    return DistributedProcesses(device, shards=True)


def ended(processes: Processes) -> None:
    """Take leave of the others, who may have something to do yet.

    Args:
        processes: from `started`.
    """
    if processes.count > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def naming_the_lost(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that says which process has died, where PyTorch speaks of a connection.

    Args:
        function: with `processes` among its keyword arguments.
    """

    @wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            processes: Any = kwargs.get("processes")
            alone = getattr(processes, "count", 1) == 1 or not distributed.is_initialized()
            if alone or not _of_connection(error) or not (lost := _lost(processes)):
                raise
            ranks = ", ".join(map(str, lost))
            raise ConnectionError(
                f"Process {ranks} of {processes.count} (counted from 0) has ended, so that the others "
                "cannot go on; what it has printed, or the system's log, says why. Start all of them "
                "again: the run continues from its last checkpoint."
            ) from error

    return named


def _of_connection(error: RuntimeError) -> bool:
    """Return whether an error is of what joins the processes, and not of what this one does."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _lost(processes: Processes) -> list[int]:
    """Return the ranks that do not answer: they were killed, or have an error of their own."""
    store: Any = distributed.distributed_c10d._get_default_store()
    keys = {rank: f"fusion_tinting/here/{rank}" for rank in range(processes.count)}
    try:
        store.set(keys[processes.rank], "yes")
        until = time.monotonic() + ROLL_CALL
        while time.monotonic() < until and not store.check(list(keys.values())):
            time.sleep(0.1)
        return [rank for rank, key in keys.items() if not store.check([key])]
    except RuntimeError:  # the store was the first process's
        return [0]
