"""Curves of an adaptation and the heat map of λ, as PNG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from fusion_tinting.method.tinted_model import TintedModel
from fusion_tinting.run.files import write_atomically
from fusion_tinting.run.history import History

OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999", "#B8A900")
"""Eight colours that colour-blind readers tell apart; with more tasks the line style changes too."""
STYLES = ("-", "--", ":")
PANELS = (
    ("loss", "loss (mean over kept samples)"),
    ("agreement", "agreement with the expert (%)"),
    ("kept", "samples kept (%)"),
    ("coefficient", "mean λ over tensors"),
)


def write_all(model: TintedModel, run_dir: Path) -> None:
    """Write `curves.png` (if there is a history) and `coefficients.png` into `run_dir`."""
    if model.history is not None and len(model.history):
        save(curves(model.history), run_dir / "curves.png")
    save(coefficient_map(model.coefficients, model.tasks), run_dir / "coefficients.png")


def curves(history: History) -> Figure:
    """Loss, agreement, share kept and mean λ by iteration: a line per task, smoothed, and their mean."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    window = max(1, len(history) // 25)
    for axis, (column, label) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        values = getattr(history, column) * (100 if "%" in label else 1)
        smooth = _smooth(values, 1 if column == "coefficient" else window)
        steps = np.arange(len(history) - len(smooth), len(history)) + 1
        for k, task in enumerate(history.tasks):
            style = {"color": OKABE_ITO[k % 8], "linestyle": STYLES[k // 8 % 3]}
            axis.plot(steps, smooth[:, k], linewidth=1.2, label=task, **style)
        axis.plot(steps, smooth.mean(1), color="black", linewidth=2, label="mean")
        axis.set_xlabel("iteration")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if column == "kept":
            axis.set_ylim(0, 105)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    averaged = f", moving average of {window} iterations" if window > 1 else ""
    figure.suptitle(f"Adaptation{averaged}")
    return figure


def coefficient_map(coefficients: Mapping[str, Tensor], tasks: Sequence[str]) -> Figure:
    """The effective λ: a row per merged tensor, from input to output, a column per task."""
    names = list(coefficients)
    lam = torch.stack(list(coefficients.values())).numpy()
    height = min(4 + 0.09 * len(names), 40)
    figure = Figure(figsize=(3.5 + 0.55 * len(tasks), height), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(lam, aspect="auto", cmap="viridis", vmin=0, vmax=max(1.0, lam.max()))
    axis.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize=8)
    every = max(1, len(names) // 40)
    shown = range(0, len(names), every)
    axis.set_yticks(list(shown), [names[i] for i in shown], fontsize=6)
    axis.set_title("merging coefficients λ", fontsize=10)
    figure.colorbar(image, ax=axis, label="λ")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def spread(wanted: Sequence[float], gap: float) -> np.ndarray:
    """Heights of labels, lowest first, each at least `gap` over the one before, and as near to `wanted` as
    that allows: least squares, an isotonic regression of wanted_i − i · gap."""
    from sklearn.isotonic import IsotonicRegression  # here, for most plots have no labels to set apart

    steps = gap * np.arange(len(wanted))
    if len(wanted) == 0:
        return steps
    return IsotonicRegression().fit_transform(range(len(wanted)), wanted - steps) + steps


def _smooth(values: torch.Tensor, window: int) -> np.ndarray:
    """Moving average over `window` iterations, shape (steps − window + 1, K)."""
    sums = np.cumsum(np.vstack([np.zeros((1, values.shape[1])), values.numpy()]), axis=0)
    return (sums[window:] - sums[:-window]) / window
