"""The hardware and the versions that results are measured on, and the memory of a process."""

import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("fusion-tinting", "fusion-bench", "torch", "transformers")


def about(device: str = "cpu") -> dict:
    """Return the `hardware` and the `versions` of what is measured on a device."""
    return {"hardware": hardware(device), "versions": {name: version(name) for name in PACKAGES}}


def hardware(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory(process: int | str = "self") -> tuple[int, int]:
    """Return the anonymous and the resident memory of a process, in bytes; zeros if it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(1024 * int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "VmRSS"))


def watch(process: int, phase: Callable[[], str] = str) -> tuple[Counter[str], int, resource.struct_rusage]:
    """Return the largest anonymous memory of a process until it ends, in bytes, its status and its usage.

    The memory is that of each phase that the process is in, by the phase's name.
    """
    largest: Counter[str] = Counter()
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return largest, status, usage
        now, held = phase(), memory(process)[0]
        largest[now] = max(largest[now], held)
        time.sleep(0.003)
