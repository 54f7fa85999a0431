"""Functions in processes of their own, forked from this one, which has imported what they need."""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Child:
    """A process that writes into a file what its function returned or raised."""

    pid: int
    answer: Path

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> tuple[bool, Any]:
        """Wait for the end; return whether there is an answer, and the answer."""
        os.waitpid(self.pid, 0)
        return (True, pickle.loads(self.answer.read_bytes())) if self.answer.is_file() else (False, None)


def start(work: Callable[[], Any], answer: Path, quiet: bool = True) -> Child:
    """Start a function in a process of its own; an exception is an answer too."""
    answer.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, answer)
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if quiet:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
        try:
            found = work()
        except BaseException as error:
            found = error
        temporary = answer.with_suffix(".part")
        temporary.write_bytes(pickle.dumps(found))
        temporary.rename(answer)
        code = 0
    finally:
        os._exit(code)
