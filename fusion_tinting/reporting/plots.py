"""The pictures of a run: its curves and the heat map of λ, as PNG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fusion_tinting.run.files import path_of, possibly, write_atomically
from fusion_tinting.run.history import History
from fusion_tinting.run.manifest import MANIFEST
from fusion_tinting.run.tinted_model import TintedModel

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999", "#B8A900")
"""Eight colors that color-blind readers tell apart; with more tasks the line style changes too."""
DARK_FIRST = tuple(OKABE_ITO[place] for place in (4, 3, 2, 5, 0, 1, 6, 7))
"""The same, blue, vermilion and green first, which print darkest."""
STYLES = ("-", "--", ":")
PANELS = (
    ("loss", "loss (mean over kept samples)"),
    ("agreement", "agreement with the expert (%)"),
    ("kept", "samples kept (%)"),
    ("coefficient", "mean λ over tensors"),
)


def write_pictures(model: TintedModel, run_dir: str | Path) -> None:
    """Write `curves.png` (if there is a history) and `coefficients.png` into a folder, such as a run's.

    A picture that is there and no older than the run's manifest is left as it is. Call it after `tint` has
    returned, in one process. A picture that cannot be written is a warning.

    Args:
        model: the tinted model that the run has made, new or loaded.
        run_dir: the folder.

    Raises:
        ValueError: a model of no run.
    """
    if not model.coefficients:
        raise ValueError("This model has no λ to draw: it comes from `remerged`, and of no run.")
    drawings = {"coefficients.png": lambda: coefficient_map(model.coefficients, model.tasks)}
    history = model.history
    if history is not None and len(history):
        drawings["curves.png"] = lambda: curves(history)
    run_dir = path_of("run_dir", run_dir)
    manifest = run_dir / MANIFEST
    for name, draw in drawings.items():
        path = run_dir / name
        there = path.is_file() and manifest.is_file()
        if not there or path.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            possibly(save, draw(), path)


def curves(history: History) -> Figure:
    """Draw loss, agreement, share kept and mean λ by iteration: a line for each task, and their mean.

    All but λ are smoothed by a moving average.

    Args:
        history: of T iterations and K tasks.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    window = max(1, len(history) // 25)
    for axes, (column, label) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        values = getattr(history, column) * (100 if "%" in label else 1)
        _lines(axes, history.tasks, _smooth(values, 1 if column == "coefficient" else window), len(history))
        axes.set(xlabel="iteration", ylabel=label)
        if column == "kept":
            axes.set_ylim(0, 105)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    averaged = f", moving average of {window} iterations" if window > 1 else ""
    figure.suptitle(f"Adaptation{averaged}")
    return figure


def _lines(axes: Axes, tasks: Sequence[str], values: np.ndarray, last: int) -> None:
    """Draw a line for each task, and their mean.

    Args:
        axes: where to draw.
        tasks: the names of the K tasks.
        values: (T, K), of T iterations.
        last: the last of these iterations.
    """
    steps = np.arange(last - len(values), last) + 1
    for k, task in enumerate(tasks):
        style: dict[str, Any] = {"color": OKABE_ITO[k % 8], "linestyle": STYLES[k // 8 % 3]}
        axes.plot(steps, values[:, k], linewidth=1.2, label=task, **style)
    axes.plot(steps, values.mean(1), color="black", linewidth=2, label="mean")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)


def coefficient_map(coefficients: Mapping[str, Tensor], tasks: Sequence[str]) -> Figure:
    """Draw the effective λ: a row for each merged tensor, from input to output, a column for each task.

    Args:
        coefficients: tensor name -> λ, (K,).
        tasks: the names of the K tasks.
    """
    names = list(coefficients)
    lam = torch.stack(list(coefficients.values())).numpy()
    height = min(4 + 0.09 * len(names), 40)
    figure = Figure(figsize=(3.5 + 0.55 * len(tasks), height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(lam, aspect="auto", cmap="viridis", vmin=0, vmax=max(1.0, lam.max()))
    axes.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize=8)
    every = max(1, len(names) // 40)
    labeled = range(0, len(names), every)
    axes.set_yticks(list(labeled), [names[i] for i in labeled], fontsize=6)
    axes.set_title("merging coefficients λ", fontsize=10)
    figure.colorbar(image, ax=axes, label="λ")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure: the figure.
        path: where to write it.

    Raises:
        OSError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def spread(wanted: Sequence[float], gap: float) -> np.ndarray:
    """Return the heights of labels that are set apart, (N,), as near to the wanted ones as that allows.

    In the sense of least squares, which is an isotonic regression of wanted_i − i · gap.

    Args:
        wanted: the N heights where labels would be best, lowest first.
        gap: how far apart two labels must be at least.
    """
    from sklearn.isotonic import IsotonicRegression  # here, for most plots have no labels to set apart

    steps = gap * np.arange(len(wanted))
    if len(wanted) == 0:
        return steps
    return IsotonicRegression().fit_transform(range(len(wanted)), wanted - steps) + steps


def _smooth(values: torch.Tensor, window: int) -> np.ndarray:
    """Return the moving average over `window` iterations, (T − window + 1, K)."""
    sums = np.cumsum(np.vstack([np.zeros((1, values.shape[1])), values.numpy()]), axis=0)
    return (sums[window:] - sums[:-window]) / window
