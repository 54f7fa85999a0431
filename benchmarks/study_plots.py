"""The figures of `studies.py`."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
from board_plots import save
from common import COLORS
from matplotlib import pyplot
from matplotlib.ticker import LogFormatter


def curve(path: Path, found: dict, pool: str) -> None:
    """Mean accuracy over the logarithm of `x`, with the range over the seeds."""
    figure, axes = pyplot.subplots(figsize=(6.5, 4.5), layout="constrained")
    by_x: dict[float, list[float]] = {}
    for row in found["rows"]:
        by_x.setdefault(row[found["x"]], []).append(row["accuracy"])
    xs = sorted(by_x)
    axes.fill_between(
        xs, [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs], color=COLORS[0], alpha=0.2
    )
    axes.plot(
        xs, [mean(by_x[x]) for x in xs], "-o", color=COLORS[0], label="tinted, mean and range of seeds"
    )
    for (name, value), style in zip(found["references"].items(), (":", "--"), strict=True):
        axes.axhline(value, color="0.35", linestyle=style, label=name)
    axes.set(xscale="log", xlabel=found["x_title"], ylabel="accuracy %, mean of the tasks", title=pool)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    finish(axes, figure, path)


def imbalance(path: Path, found: dict, pool: str) -> None:
    """Every task of every stream: its share of the expert over the number of its images."""
    figure, axes = pyplot.subplots(figsize=(7, 4.8), layout="constrained")
    for (stream, mark), color in zip((("imbalanced", "o"), ("balanced", "s")), COLORS, strict=False):
        rows = [row for row in found["rows"] if row["stream"] == stream]
        points = [
            (row["samples"][task], 100 * value / found["experts"][task])
            for row in rows
            for task, value in row["per_task"].items()
        ]
        label = f"{stream}: average accuracy {mean(row['accuracy'] for row in rows):.1f} %"
        axes.plot(*zip(*points, strict=True), mark, color=color, label=label, alpha=0.8)
    axes.axhline(100, color="0.35", linestyle=":", label="experts")
    axes.set(xscale="log", xlabel="unlabelled images of the task", title=pool)
    axes.set_ylabel("accuracy, % of the task's expert")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    finish(axes, figure, path)


def corruption(path: Path, found: dict, pool: str) -> None:
    """Bars of every model, by the corruption scored on."""
    images = list(dict.fromkeys(row["images"] for row in found["rows"]))
    values = {(row["model"], row["images"]): mean(row["accuracy"]) for row in found["rows"]}
    bars(path, values, images, "accuracy %, mean of the tasks", f"{pool}, by the test images")


def calibration(path: Path, found: dict, pool: str) -> None:
    """Bars of every model, by task, and their mean."""
    values = {(row["model"], "average"): row["error"] for row in found["rows"]}
    for row in found["rows"]:
        values |= {(row["model"], task): error for task, error in row["per_task"].items()}
    groups = ["average", *found["rows"][0]["per_task"]]
    bars(path, values, groups, "expected calibration error, points", pool)


def origins(path: Path, found: dict, pool: str) -> None:
    """Bars of both pairs, by the way of merging."""
    values = {(row["pair"], row["model"]): mean(row["accuracy"]) for row in found["rows"]}
    ways = list(dict.fromkeys(row["model"] for row in found["rows"]))
    tasks = " and ".join(task.removeprefix("mini-") for task in found["tasks"])
    bars(path, values, ways, "accuracy %, mean of both tasks", f"{pool}, {tasks}")


def bars(path: Path, values: dict, groups: list[str], unit: str, title: str) -> None:
    """One group of bars for each of `groups`; `values` has (series, group) -> height."""
    series = list(dict.fromkeys(name for name, _ in values))
    figure, axes = pyplot.subplots(figsize=(2 + 1.1 * len(groups), 4.6), layout="constrained")
    width = 0.84 / len(series)
    for place, (name, color) in enumerate(zip(series, COLORS, strict=False)):
        at = np.arange(len(groups)) - 0.42 + width * (place + 0.5)
        axes.bar(at, [values.get((name, group), 0) for group in groups], width, color=color, label=name)
    names = [group.removeprefix("mini-").replace("_", " ") for group in groups]
    axes.set_xticks(range(len(groups)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes.set(ylabel=unit, title=title)
    axes.margins(x=0.01)
    axes.set_axisbelow(True)
    finish(axes, figure, path)


def finish(axes, figure, path: Path) -> None:
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save(figure, path)


DRAW: dict[str, Callable[[Path, dict, str], None]] = {
    "samples": curve,
    "steps": curve,
    "imbalance": imbalance,
    "corruption": corruption,
    "calibration": calibration,
    "origins": origins,
}
"""Study -> what draws it."""
