"""Tasks asked from many threads at once, with a tint inside the encoder."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

from .results import hostile_world
from .verdicts import RIGHT, WRONG, Verdict

TASKS = [f"task{k}" for k in range(8)]


def count(threads: int = 32, turns: int = 20, seed: int = 0) -> list[Verdict]:
    """Ask every task from every thread; each answer must be what one thread gives."""
    verdicts = []
    for layer in ("block:1", "stem", "head"):
        torch.manual_seed(seed)
        model = hostile_world(TASKS).tint(steps=2, layer=layer)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        inputs = torch.randn(16, 5)
        with torch.no_grad():
            alone = {task: model(inputs, task) for task in TASKS}
        verdicts += _ask(f"layer {layer}", model, inputs, alone, threads, turns)
        intact = all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        verdicts.append(Verdict(f"layer {layer}: the model afterward", RIGHT if intact else WRONG))
    return verdicts


def _ask(
    name: str, model: Any, inputs: torch.Tensor, alone: dict, threads: int, turns: int
) -> list[Verdict]:
    barrier = Barrier(threads)

    def ask(thread: int) -> list[Verdict]:
        barrier.wait()
        verdicts = []
        for turn in range(turns):
            task = TASKS[(thread + turn) % len(TASKS)]
            with torch.no_grad():
                equal = torch.equal(model(inputs, task), alone[task])
            verdicts.append(Verdict(f"{name}: {task} from thread {thread}", RIGHT if equal else WRONG))
        return verdicts

    with ThreadPoolExecutor(threads) as pool:
        return [verdict for found in pool.map(ask, range(threads)) for verdict in found]
