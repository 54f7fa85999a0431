"""What every benchmark says of itself, and how it writes it down."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("fusion-tinting", "fusion-bench", "torch", "transformers")
RESULTS = Path(__file__).parent / "results"


def about(device: str = "cpu") -> dict:
    """The hardware and the versions of what was measured."""
    return {"hardware": hardware(device), "versions": {name: version(name) for name in PACKAGES}}


def hardware(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory(process: int | str = "self") -> tuple[int, int]:
    """Anonymous and resident memory of a process, in bytes; none of one that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(1024 * int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "VmRSS"))


def save(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def against_k(
    path: Path, title: str, unit: str, curves: dict[str, dict[int, float]], scale: str = "log"
) -> None:
    """Draw one curve for each way over the number of tasks: ours drawn through, the others dashed, and ways
    whose names end alike in one colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({k for curve in curves.values() for k in curve})
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    kinds = list(dict.fromkeys(name.split()[-1] for name in curves))
    for name, curve in sorted(curves.items(), key=lambda item: -item[1][counts[-1]]):
        style, color = ("-o" if name.startswith("ours") else "--s"), COLORS[kinds.index(name.split()[-1])]
        axes.plot(list(curve), list(curve.values()), style, color=color, label=name, markersize=5)
    axes.set(xlabel="tasks K", ylabel=unit, title=title, xscale="log", yscale=scale)
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    if scale == "linear":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
