"""What surrounds a call in the caller's program, and must not change what comes of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from fusion_tinting.method.models import caching, renew

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""For which there is an autocast."""

P = ParamSpec("P")
R = TypeVar("R")

_ALONE = threading.RLock()
"""Of several threads one trains at a time: the random generator, and how many threads compute, are the
process's."""


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that a second thread of a process enters when the first one has left it.

    Args:
        function: with `processes` among its keyword arguments. Several wait for each other: all enter.
    """

    @wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        with _ALONE if getattr(kwargs.get("processes"), "count", 1) == 1 else nullcontext():
            return function(*args, **kwargs)

    return entered


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as PyTorch does where nothing was set: float32, on the CPU unless said, and with gradients.

    Another default dtype or device, autocast, `no_grad` and `inference_mode` count again afterward, and the
    random generator is where it was.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))  # a user's sampler or data set may draw
        for device in filter(torch.is_autocast_enabled, DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Leave a model's attributes as they were, such as the attention that it remembers of its last batch.

    With those of a training step neither the model nor its other merges could be copied.

    Args:
        model: of whose modules they are.
    """
    kept = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        renew(caching(model))
