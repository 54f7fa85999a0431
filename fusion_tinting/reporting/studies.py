"""What the studies write: a grid of figures as JSON, as Markdown and in the terminal, and their plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from fusion_tinting.reporting import plots
from fusion_tinting.run.files import write_json, write_text

NAMED = 25
"""More marks than that have no room for their names: the best of them are named."""
LINE_HEIGHT, LABEL_WIDTH = 11, 60
"""Of labels, in points; the width of a usual one."""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: what it is of, with the unit.
        columns: their titles; the first is of the rows' names.
        rows: a name and a value for each other column; None where there is none.
        caption: what a reader must know besides.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence]
    caption: str = ""

    def markdown(self) -> str:
        """As a Markdown table under its title, the caption below."""
        ruler = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [self.columns, ruler, *([_cell(value) for value in row] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"**{self.title}**", table, self.caption) if part) + "\n"

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption=self.caption or None, caption_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(_cell, row))
        return table


def write(path: Path, found: Mapping, grids: Sequence[Grid], figure: Figure) -> None:
    """Write `<path>.json`, `<path>.md` and `<path>.png`.

    Raises:
        OSError: the folder cannot be written.
    """
    write_json(path.with_name(f"{path.name}.json"), found)
    write_text(path.with_name(f"{path.name}.md"), "\n".join(grid.markdown() for grid in grids))
    plots.save(figure, path.with_name(f"{path.name}.png"))


def by_parameters(
    points: Mapping[str, tuple[float, float]],
    lines: Mapping[str, float],
    *,
    unit: str,
    title: str,
) -> Figure:
    """A mark for every layer, with its name.

    Args:
        points: layer -> (extra parameters a task, score).
        lines: name -> score of what has no extra parameters, drawn as a line.
        unit: of the score.
        title: of the figure.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for place, kind in enumerate(("head", "block", "another layer")):
        own = [point for name, point in points.items() if _kind(name) == kind]
        if own:
            axes.plot(*zip(*own, strict=True), "os^"[place], color=_color(place), label=kind, markersize=7)
    for place, (name, value) in enumerate(lines.items()):
        style = {"color": "0.35", "linestyle": plots.STYLES[place % len(plots.STYLES)]}
        axes.axhline(value, label=name, linewidth=1.2, **style)
    axes.set(xscale="log", xlabel="extra parameters per task", ylabel=unit, title=title)
    axes.margins(y=0.1)
    if points:
        axes.set_xlim(*_wider(points))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    best = sorted(points, key=lambda name: points[name][1], reverse=True)[:NAMED]
    _name(axes, dict(zip(_short(best), map(points.get, best), strict=True)))
    return figure


def heat_map(axes: Axes, values: Sequence[Sequence[float]], *, rows, columns, title: str, span) -> None:
    """A matrix of numbers, written into its cells.

    Args:
        axes: where to draw.
        values: shape (rows, columns); NaN where there is none.
        rows, columns: their names.
        title: of this matrix.
        span: the values at both ends of the colours, so that several matrices can be compared.
    """
    matrix = np.array(values, dtype=float)
    low, high = span
    axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=10)
    middle = (low + high) / 2
    size = 9 if max(matrix.shape) <= 8 else 6
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            ink = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.1f}", color=ink, ha="center", va="center", fontsize=size)


def scatter(axes: Axes, groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], **labels) -> None:
    """Points of a few groups in one plot, each with its least-squares line.

    Args:
        axes: where to draw.
        groups: name -> (x, y).
        **labels: of the axes, as `Axes.set` takes them.
    """
    for place, (name, (x, y)) in enumerate(groups.items()):
        axes.plot(x, y, "os^"[place % 3], color=_color(place), label=name, alpha=0.8)
        if len(set(x)) > 1:
            slope, height = np.polyfit(x, y, 1)
            ends = np.array([min(x), max(x)])
            axes.plot(ends, slope * ends + height, color=_color(place), linestyle=plots.STYLES[place % 3])
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _color(place: int) -> str:
    return plots.OKABE_ITO[(4, 3, 2)[place % 3]]  # blue, vermilion, green: those that print darkest


def _kind(layer: str) -> str:
    first = layer.partition(":")[0].partition(".")[0]
    return first if first in ("head", "block") else "another layer"


def _short(layers: Sequence[str]) -> list[str]:
    """The last part of their names, if that tells them apart."""
    last = [layer.rpartition(".")[2] for layer in layers]
    return last if len(set(last)) == len(last) else list(layers)


def _name(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Labels to the right of the points, those of close points in one column, no two on one line."""
    axes.figure.draw_without_rendering()  # so that places are known
    pixel = axes.figure.dpi / 72
    marks = sorted((*axes.transData.transform(point), name) for name, point in points.items())
    look = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    line = {"color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}
    look["arrowprops"] = {"arrowstyle": "-", **line}
    for column in _columns(marks, LABEL_WIDTH * pixel):
        right = max(x for x, _, _ in column)
        column = sorted(column, key=lambda mark: mark[1])
        heights = plots.spread([y for _, y, _ in column], LINE_HEIGHT * pixel)
        for (x, y, name), height in zip(column, heights, strict=True):
            axes.annotate(name, points[name], ((right - x) / pixel + 16, (height - y) / pixel), **look)


def _wider(points: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Limits of x with room for labels on the right, on a logarithmic scale."""
    xs = [x for x, _ in points.values()]
    least, most = min(xs), max(xs)
    span = max(most / least, 10)
    return least / span**0.07, most * span**0.2


def _columns(marks: Sequence[tuple], width: float) -> list[list[tuple]]:
    """Marks, sorted from left to right, in groups whose labels would run into each other."""
    groups: list[list[tuple]] = []
    for mark in marks:
        if groups and mark[0] - groups[-1][-1][0] < width:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return groups
