"""What a command is at, and how long each part of it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click


class Phases:
    """The parts of a command, one after another.

    Args:
        shown: whether each is told when it begins.

    Attributes:
        seconds: name -> how long it took.
        notes: what is to be said at the end.
    """

    def __init__(self, shown: bool):
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self._shown = shown

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Be in a part while the context lasts."""
        if self._shown:
            click.echo(f"{name} …", err=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        """Return how long each part took, and all."""
        parts = [f"{name.lower()} {seconds:.1f} s" for name, seconds in self.seconds.items()]
        return f"Time: {', '.join(parts)}; in all {sum(self.seconds.values()):.1f} s."
