"""Processes that start in a moment: forked from the test's own, which has imported what they need."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures.thread import _threads_queues
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

FORK = multiprocessing.get_context("fork")


def start(
    function: Callable[..., None], *arguments: object, folder: Path, environment: dict[str, str]
) -> tuple[BaseProcess, Connection]:
    """Call a module's function in a process of its own, in a folder; return it, and its output's pipe."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=begin, args=(function, arguments, folder, environment, sender))
    process.start()
    sender.close()
    return process, receiver


def begin(
    function: Callable[..., None],
    arguments: tuple,
    folder: Path,
    environment: dict[str, str],
    output: Connection,
) -> None:
    """Call it, within the process."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(folder)
    _threads_queues.clear()  # those threads are not here, and would be waited for in the end
    function(*arguments)


def end(process: BaseProcess, output: Connection, seconds: float) -> str:
    """Wait for a process, which must do well; return what it has written."""
    process.join(seconds)
    process.kill()  # or its output would have no end; one that has ended does not mind
    with os.fdopen(os.dup(output.fileno())) as lines:
        said = lines.read()
    assert process.exitcode == 0, said
    return said


def fusion_bench(*arguments: str) -> None:
    """FusionBench's command."""
    sys.argv = ["fusion_bench", *arguments]
    from fusion_bench.scripts.cli import _hydra_main
    from fusion_bench.utils.pylogger import RankZeroLogger

    # Its loggers remember which levels were off when they were asked last, by an earlier test perhaps.
    RankZeroLogger.manager._clear_cache()
    _hydra_main()


def mergekit_tint(*arguments: object) -> None:
    """Run our command."""
    from fusion_tinting.mergekit.cli import main

    main([str(argument) for argument in arguments], standalone_mode=False)
