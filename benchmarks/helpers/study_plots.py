"""The figures of `studies.py`."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from helpers.figures import COLORS, grouped_bars, new, save


def curve(path: Path, outcome: dict, pool: str) -> None:
    """Draw mean accuracy over the logarithm of `x`, with the range over the seeds."""
    figure, axes = new(6.5, 4.5)
    by_x: dict[float, list[float]] = {}
    for row in outcome["rows"]:
        by_x.setdefault(row[outcome["x"]], []).append(row["accuracy"])
    xs = sorted(by_x)
    axes.fill_between(
        xs, [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs], color=COLORS[0], alpha=0.2
    )
    axes.plot(
        xs, [mean(by_x[x]) for x in xs], "-o", color=COLORS[0], label="tinted, mean and range of seeds"
    )
    for (name, value), style in zip(outcome["references"].items(), (":", "--"), strict=True):
        axes.axhline(value, color="0.35", linestyle=style, label=name)
    axes.set(xscale="log", xlabel=outcome["x_title"], ylabel="accuracy %, mean of the tasks", title=pool)
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.minorticks_off()
    finish(figure, path)


def imbalance(path: Path, outcome: dict, pool: str) -> None:
    """Draw for every task of every stream its share of the expert over the number of its images."""
    figure, axes = new(7, 4.8)
    for (stream, mark), color in zip((("imbalanced", "o"), ("balanced", "s")), COLORS, strict=False):
        rows = [row for row in outcome["rows"] if row["stream"] == stream]
        points = [
            (row["samples"][task], 100 * value / outcome["experts"][task])
            for row in rows
            for task, value in row["per_task"].items()
        ]
        label = f"{stream}: average accuracy {mean(row['accuracy'] for row in rows):.1f} %"
        axes.plot(*zip(*points, strict=True), mark, color=color, label=label, alpha=0.8)
    axes.axhline(100, color="0.35", linestyle=":", label="experts")
    axes.set(xscale="log", xlabel="unlabeled images of the task", title=pool)
    axes.set_ylabel("accuracy, % of the task's expert")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    finish(figure, path)


def corruption(path: Path, outcome: dict, pool: str) -> None:
    """Draw bars of every model, by the corruption scored on."""
    images = list(dict.fromkeys(row["images"] for row in outcome["rows"]))
    values = {(row["model"], row["images"]): mean(row["accuracy"]) for row in outcome["rows"]}
    bars(path, values, images, "accuracy %, mean of the tasks", f"{pool}, by the test images")


def calibration(path: Path, outcome: dict, pool: str) -> None:
    """Draw bars of every model, by task, and their mean."""
    values = {(row["model"], "average"): row["error"] for row in outcome["rows"]}
    for row in outcome["rows"]:
        values |= {(row["model"], task): error for task, error in row["per_task"].items()}
    groups = ["average", *outcome["rows"][0]["per_task"]]
    bars(path, values, groups, "expected calibration error, points", pool)


def origins(path: Path, outcome: dict, pool: str) -> None:
    """Draw bars of both pairs, by the way of merging."""
    values = {(row["pair"], row["model"]): mean(row["accuracy"]) for row in outcome["rows"]}
    ways = list(dict.fromkeys(row["model"] for row in outcome["rows"]))
    tasks = " and ".join(task.removeprefix("mini-") for task in outcome["tasks"])
    bars(path, values, ways, "accuracy %, mean of both tasks", f"{pool}, {tasks}")


def bars(path: Path, values: dict, groups: list[str], unit: str, title: str) -> None:
    """Draw one group of bars for each of `groups`.

    Args:
        path: where the figure goes.
        values: (series, group) -> height.
        groups: the groups, from left to right.
        unit: the label of the heights.
        title: the title of the figure.
    """
    names = dict.fromkeys(name for name, _ in values)
    series = {name: [values.get((name, group), 0) for group in groups] for name in names}
    figure, axes = new(2 + 1.1 * len(groups), 4.6)
    grouped_bars(axes, series, groups)
    axes.set(ylabel=unit, title=title)
    finish(figure, path)


def finish(figure: Figure, path: Path) -> None:
    """Add the legend and save."""
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
