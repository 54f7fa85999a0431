"""The files that a study writes, and the kinds of figures that studies draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion_tinting.reporting import plots
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.files import write_json, write_text

NAMED = 25
"""Of more marks than that only the best are named, for want of room."""
LINE_HEIGHT, LABEL_WIDTH = 11, 60
"""Height and usual width of a label, in points."""


def write(path: Path, content: Mapping, tables: Sequence[Table], figure: Figure) -> None:
    """Write `<path>.json`, `<path>.md` and `<path>.png`.

    Args:
        path: where, without an ending.
        content: what the JSON holds.
        tables: the tables of the Markdown file.
        figure: the figure.

    Raises:
        OSError: the folder cannot be written.
    """
    write_json(path.with_name(f"{path.name}.json"), content)
    write_text(path.with_name(f"{path.name}.md"), "\n\n".join(t.markdown() for t in tables) + "\n")
    plots.save(figure, path.with_name(f"{path.name}.png"))


def by_parameters(
    points: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
    *,
    unit: str,
    title: str,
) -> Figure:
    """Draw a mark for every layer, with its name.

    Args:
        points: layer -> (extra parameters per task, score).
        lines: name -> score of what has no extra parameters, drawn as a line.
        unit: the unit of the scores.
        title: the title of the figure.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    _draw(axes, points, lines)
    axes.set(xscale="log", xlabel="extra parameters per task", ylabel=unit, title=title)
    axes.margins(y=0.1)
    if points:
        axes.set_xlim(*_wider(points))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    best = sorted(points, key=lambda name: points[name][1], reverse=True)[:NAMED]
    _name(axes, dict(zip(_short(best), (points[name] for name in best), strict=True)))
    return figure


def _draw(axes: Axes, points: Mapping[str, tuple[float, float]], lines: Mapping[str, float]) -> None:
    """Draw the marks, a color for each kind of layer, and the lines."""
    for place, kind in enumerate(("head", "block", "another layer")):
        own = [point for name, point in points.items() if _kind(name) == kind]
        if own:
            look: dict[str, Any] = {"color": plots.DARK_FIRST[place], "label": kind, "markersize": 7}
            axes.plot(*zip(*own, strict=True), "os^"[place], **look)
    for place, (name, value) in enumerate(lines.items()):
        style: dict[str, Any] = {"color": "0.35", "linestyle": plots.STYLES[place % len(plots.STYLES)]}
        axes.axhline(value, label=name, linewidth=1.2, **style)


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    span: tuple[float, float],
) -> None:
    """Draw a matrix of numbers, each written into its cell.

    Args:
        axes: where to draw.
        values: shape (rows, columns); NaN where there is none.
        rows: the names of the rows.
        columns: the names of the columns.
        title: the title of this matrix.
        span: the values at both ends of the colors, so that several matrices can be compared.
    """
    matrix = np.array(values, dtype=float)
    low, high = span
    axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    _write_numbers(axes, matrix, (low + high) / 2)


def _write_numbers(axes: Axes, matrix: np.ndarray, middle: float) -> None:
    """Write each number into its cell, in white below the middle of the colors."""
    size = 9 if max(matrix.shape) <= 8 else 6
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            ink = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.1f}", color=ink, ha="center", va="center", fontsize=size)


def scatter(
    axes: Axes, groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], **labels: str
) -> None:
    """Draw the points of at most three groups in one plot, each with its least-squares line.

    Args:
        axes: where to draw.
        groups: name -> (x, y).
        **labels: title and axis labels, as `Axes.set` takes them.
    """
    for place, (name, (x, y)) in enumerate(groups.items()):
        color = plots.DARK_FIRST[place]
        axes.plot(x, y, "os^"[place], color=color, label=name, alpha=0.8)
        if len(set(x)) > 1:
            slope, height = np.polyfit(x, y, 1)
            ends = np.array([min(x), max(x)])
            axes.plot(ends, slope * ends + height, color=color, linestyle=plots.STYLES[place])
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _kind(layer: str) -> str:
    first = layer.partition(":")[0].partition(".")[0]
    return first if first in ("head", "block") else "another layer"


def _short(layers: Sequence[str]) -> list[str]:
    """Return the last part of the layers' names, if that distinguishes them."""
    last = [layer.rpartition(".")[2] for layer in layers]
    return last if len(set(last)) == len(last) else list(layers)


def _name(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names to the right of the points, those of close points in one column, no two on one line."""
    axes.figure.draw_without_rendering()  # so that places are known
    pixel = axes.figure.dpi / 72
    marks = sorted((*axes.transData.transform(point), name) for name, point in points.items())
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    line = {"color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
    look["arrowprops"] = {"arrowstyle": "-", **line}
    for column in _columns(marks, LABEL_WIDTH * pixel):
        right = max(x for x, _, _ in column)
        column = sorted(column, key=lambda mark: mark[1])
        heights = plots.spread([y for _, y, _ in column], LINE_HEIGHT * pixel)
        for (x, y, name), height in zip(column, heights, strict=True):
            axes.annotate(name, points[name], ((right - x) / pixel + 16, (height - y) / pixel), **look)


def _wider(points: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Return limits of x with room for labels on the right, on a logarithmic scale."""
    xs = [x for x, _ in points.values()]
    least, most = min(xs), max(xs)
    span = max(most / least, 10)
    return least / span**0.07, most * span**0.2


def _columns(marks: Sequence[tuple[float, float, str]], width: float) -> list[list[tuple]]:
    """Return marks, sorted from left to right, in groups whose labels would run into each other."""
    groups: list[list[tuple]] = []
    for mark in marks:
        if groups and mark[0] - groups[-1][-1][0] < width:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return groups
