"""A result to compare: everything that a user can see of a tinted model."""

from typing import Any

import torch
from torch import Tensor
from world import World, make_world

TASKS = ["cats", "dogs", "owls"]


def hostile_world(tasks: list[str] = TASKS, seed: int = 0, classes: int = 4) -> World:
    """A world of equal heads: files of two tasks can be mistaken for each other."""
    world = make_world(tasks, seed)
    world.heads = {task: torch.nn.Linear(6, classes) for task in tasks}
    return world


def seen(model: Any, inputs: Any = None) -> dict[str, Any]:
    """Return name -> tensor or value."""
    if inputs is None:
        inputs = torch.randn(7, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found: dict[str, Any] = {f"logits of {task}": model(inputs, task) for task in model.tasks}
    found |= {f"λ of {name}": row for name, row in model.coefficients.items()}
    for task, tint in model.tints.items():
        found |= {f"tint of {task}, {name}": value for name, value in tint.state_dict().items()}
    info = model.info
    found |= {"tasks": model.tasks, "layer": model.layer, "split": info.split}
    found |= {"settings": info.settings, "samples": info.samples, "layer_choice": info.layer_choice}
    return found | {"history": None if model.history is None else model.history.to_csv()}


def difference(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """Return the name of the first thing that differs."""
    for name in {**one, **two}:
        if name not in one or name not in two or not same(one[name], two[name]):
            return name
    return None


def same(one: Any, two: Any) -> bool:
    """Whether they are equal bit for bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two) and bool(one == two)
