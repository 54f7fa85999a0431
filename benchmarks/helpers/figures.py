"""Figures in the look of the benchmarks."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fusion_tinting.reporting.plots import DARK_FIRST as COLORS

__all__ = ["COLORS", "against_k", "grouped_bars", "new", "save"]


def new(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def grouped_bars(
    axes: Axes, series: Mapping[str, Sequence[float]], groups: Sequence[str], width: float = 0.84
) -> None:
    """Draw a group of bars for each of `groups`, with a bar for each of `series`.

    Args:
        axes: where to draw.
        series: name -> the height in every group.
        groups: the names of the groups, from left to right.
        width: the width of a group; the distance of two is 1.
    """
    bar = width / len(series)
    for place, ((name, heights), color) in enumerate(zip(series.items(), COLORS, strict=False)):
        left = np.arange(len(groups)) - width / 2 + bar * (place + 0.5)
        axes.bar(left, heights, bar, color=color, label=name)
    names = [group.removeprefix("mini-").replace("_", " ") for group in groups]
    axes.set_xticks(range(len(groups)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes.margins(x=0.01)
    axes.grid(False, axis="x")
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG in 64 colors, a third of the bytes."""
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def against_k(
    path: Path, title: str, unit: str, curves: Mapping[str, Mapping[int, float]], scale: str = "log"
) -> None:
    """Draw one curve for each way over the number of tasks.

    Ours are drawn through and the others dashed; ways whose names end alike have one color.

    Args:
        path: where the figure goes.
        title: the title of the figure.
        unit: the label of the y axis.
        curves: way -> number of tasks -> value.
        scale: the scale of the y axis.
    """
    counts = sorted({k for curve in curves.values() for k in curve})
    figure, axes = new(6, 4)
    kinds = list(dict.fromkeys(name.split()[-1] for name in curves))
    for name, curve in sorted(curves.items(), key=lambda item: -item[1][counts[-1]]):
        style, color = ("-o" if name.startswith("ours") else "--s"), COLORS[kinds.index(name.split()[-1])]
        axes.plot(list(curve), list(curve.values()), style, color=color, label=name, markersize=5)
    axes.set(xlabel="tasks K", ylabel=unit, title=title, xscale="log", yscale=scale)
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    if scale == "linear":
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    save(figure, path)
