"""The leaderboard's figures: accuracy against cost, task by task, and against the number of tasks."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fusion_tinting.reporting import plots
from helpers.figures import COLORS, grouped_bars, new, save
from helpers.rows import FAMILIES

STYLES = dict(zip(FAMILIES, (("o", COLORS[0]), ("s", COLORS[1]), ("^", COLORS[2])), strict=True))
"""Family -> marker and color."""
BARS = ("task_arithmetic", "adamerging", "model_tinting", "recommended")
"""Rows that are drawn task by task."""
CURVES = (*BARS, "tsv_m", "emr")
"""Rows that are drawn by the number of tasks."""
MARKS = "osD^vP"


def write_all(_: Namespace, board: dict, path: Path) -> None:
    """Draw, beside the JSON at `path`, the figures of each protocol that something was adapted under."""
    for protocol in ("inductive", "transductive"):
        if any(row.get("protocol") == protocol and "failed" not in row for row in board["rows"]):
            rows = rows_of(board, protocol)
            title = f"{board['pool']}, {protocol}"
            cost(path.with_name(f"{path.stem}_cost_{protocol}.png"), rows, title)
            by_task(path.with_name(f"{path.stem}_tasks_{protocol}.png"), rows, title)
            against_tasks(path.parent, board, protocol)


def rows_of(board: dict, protocol: str) -> dict[str, dict]:
    """Return key -> entry, of what ran under a protocol or under none."""
    ran = [row for row in board["rows"] if "failed" not in row]
    return {row["key"]: row for row in ran if row.get("protocol") in (None, protocol)}


def cost(path: Path, rows: dict[str, dict], title: str) -> None:
    """Draw accuracy against seconds of merging and adaptation, one mark a method."""
    figure, axes = new(8, 5.5)
    points = {
        row["name"]: (row["adaptation_seconds"], row["accuracy"]["mean"], row["family"])
        for row in rows.values()
        if row.get("adaptation_seconds")
    }
    for family, (marker, color) in STYLES.items():
        own = [(x, y) for x, y, of in points.values() if of == family]
        axes.plot(*zip(*own, strict=True) if own else ([], []), marker, color=color, label=family, ls="")
    axes.axhline(rows["experts"]["accuracy"]["mean"], color="0.4", linestyle=":", label="experts")
    axes.set(xscale="log", ylabel="accuracy %", title=title)
    axes.set_xlabel("seconds of loading, merging and adaptation")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)
    name_points(axes, {name: point[:2] for name, point in points.items()})
    save(figure, path)


def name_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write the names of points in a column on either side, near the height of their points."""
    xs = sorted(x for x, _ in points.values())
    span = max(xs[-1] / xs[0], 2.0)
    axes.set_xlim(xs[0] / span**0.5, xs[-1] * span**0.5)
    low, high = axes.get_ylim()
    gap, middle = (high - low) / 24, (xs[0] * xs[-1]) ** 0.5
    for left in (True, False):
        side = sorted(
            (point[1], point[0], name) for name, point in points.items() if (point[0] < middle) == left
        )
        heights = plots.spread([y for y, _, _ in side], gap)
        for (y, x, name), height in zip(side, heights, strict=True):
            axes.annotate(
                name, (x, y), (0.01 if left else 0.99, height), textcoords=axes.get_yaxis_transform(),
                ha="left" if left else "right", va="center", fontsize=8,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"},
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkB": 4},
            )  # fmt: skip
            low, high = min(low, height - gap), max(high, height + gap)
    axes.set_ylim(low, high)


def by_task(path: Path, rows: dict[str, dict], title: str) -> None:
    """Draw bars of a few methods for every task, and a line where the expert is."""
    drawn = [rows[key] for key in BARS if key in rows]
    experts = rows["experts"]["per_task"]
    figure, axes = new(max(7, 0.75 * len(experts)), 4.2)
    heights = {row["name"]: [row["per_task"][task] for task in experts] for row in drawn}
    grouped_bars(axes, heights, list(experts), width=0.8)
    places = np.arange(len(experts))
    line = {"color": "black", "lw": 1.5, "label": "its expert"}
    axes.hlines(list(experts.values()), places - 0.45, places + 0.45, **line)
    axes.set(ylabel="accuracy %", title=title)
    figure.legend(fontsize=7, loc="outside lower center", ncols=5, columnspacing=1, frameon=False)
    save(figure, path)


def against_tasks(folder: Path, board: dict, protocol: str) -> None:
    """Draw shares of the experts by the number of tasks, of all boards of a pool's family in a folder."""
    family = board["pool"].rsplit("_", 1)[0]
    boards = [json.loads(path.read_text()) for path in folder.glob(f"{family}_*.json")]
    boards = [board for board in boards if board["pool"].startswith(family) and not board["zoo_seed"]]
    by_count = {len(board["tasks"]): rows_of(board, protocol) for board in boards}
    if len(by_count) < 2:
        return
    figure, axes = new(6.5, 4.5)
    for key, color, mark in zip(CURVES, COLORS, MARKS, strict=False):
        curve = {k: rows[key] for k, rows in sorted(by_count.items()) if key in rows}
        if curve:
            shares = [row["share_of_experts"]["mean"] for row in curve.values()]
            name = next(iter(curve.values()))["name"]
            axes.plot(list(curve), shares, f"-{mark}", color=color, label=name, markersize=6)
    axes.axhline(100, color="0.4", linestyle=":", label="experts")
    axes.set(xlabel="tasks K", ylabel="accuracy, % of the experts", title=f"{family}, {protocol}")
    axes.set_xticks(sorted(by_count))
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    save(figure, folder / f"{family}_by_tasks_{protocol}.png")
