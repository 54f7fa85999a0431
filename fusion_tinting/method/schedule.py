"""Which samples make which batch, and which task is visited when.

Both are pure functions of their arguments, so that a resumed run sees the same batches, and each sample's
expert prediction can be computed once and looked up by index.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def batch_schedule(n: int, batch_size: int, steps: int, seed: int, task: str) -> Tensor:
    """Return the sample indices of every step, shape (steps, batch_size): one shuffled epoch after another.

    Args:
        n: number of samples of the task.
        batch_size: samples of each step.
        steps: number of steps.
        seed: of the run.
        task: its name; every task has an order of its own.
    """
    generator = torch.Generator().manual_seed(stable_seed(seed, "batches", task))
    epochs = max(1, math.ceil(steps * batch_size / n))
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)


def task_order(tasks: Sequence[str], step: int, seed: int) -> list[str]:
    """Return the tasks in this iteration's random order.

    It depends on their names, not on their places, so that listing the tasks in another order changes
    nothing but the order of the results.

    Args:
        tasks: the names of the tasks.
        step: the iteration.
        seed: of the run.
    """
    return sorted(tasks, key=lambda task: stable_seed(seed, "order", step, task))


def stable_seed(*parts: object) -> int:
    """Return a 63-bit seed from any values, the same in every process and Python version.

    Args:
        *parts: values whose text tells them apart.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
