"""Merging coefficients λ: how many there are, where they start, how they are kept in [0, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion_tinting.errors import unknown

GRANULARITIES = ("layer", "block", "task")

Init = float | Mapping[str, float] | Mapping[str, Tensor]
"""Where λ starts: one value; task -> its value; or tensor name -> (K,), as an earlier run has left it."""


class Coefficients(nn.Module):
    """λ, one value per group of tensors and task; called, it gives one row per tensor.

    With g(l) the group of tensor l,  λ_lk = clamp(raw[g(l), k], 0, 1).

    The clamp is inside autograd, as in the released code: outside [0, 1] the gradient is zero and only
    Adam's momentum moves the raw value. What is stored and exported is the effective, clamped λ.

    Args:
        names: the L tensor names.
        tasks: the K task names.
        init: start value of every λ (paper: 0.3); task -> start value of its λ; or tensor name -> (K,).
        granularity: `layer` gives every tensor its own row (the paper's layer-wise λ), `block`
            one row to each numbered block and to each remaining top-level module, `task` one row to all.
        clamp: whether λ is kept in [0, 1].

    Attributes:
        raw: what is trained, shape (groups, K).

    Raises:
        ValueError: unknown granularity; an initial mapping with missing, additional or wrongly shaped rows,
            or a value that is not finite; rows that differ within a group.
    """

    group: Tensor

    def __init__(
        self,
        names: Sequence[str],
        tasks: Sequence[str],
        *,
        init: Init = 0.3,
        granularity: str = "layer",
        clamp: bool = True,
    ):
        super().__init__()
        self.names, self.tasks, self.clamp = list(names), list(tasks), clamp
        labels = [_group(name, granularity) for name in names]
        first = {label: labels.index(label) for label in dict.fromkeys(labels)}
        order = {label: row for row, label in enumerate(first)}
        self.register_buffer("group", torch.tensor([order[label] for label in labels]))
        rows = initial_rows(init, self.names, self.tasks)
        self.raw = nn.Parameter(rows[list(first.values())])
        if not torch.equal(self.raw[self.group], rows):
            raise ValueError(
                f"`init` has different rows for tensors that share one λ with `granularity={granularity}`."
            )

    def forward(self) -> Tensor:
        """Return the effective λ, shape (L, K)."""
        lam = self.raw.clamp(0, 1) if self.clamp else self.raw
        return lam[self.group]

    @torch.no_grad()
    def named(self) -> dict[str, Tensor]:
        """Return tensor name -> the K effective values, tasks in order; copies on the CPU."""
        return dict(zip(self.names, self().cpu().clone().unbind(0), strict=True))


def initial_rows(init: Init, names: Sequence[str], tasks: Sequence[str]) -> Tensor:
    """Return the start value of every λ, shape (L, K).

    Args:
        init: as `Coefficients` takes it.
        names: the L tensor names.
        tasks: the K task names.

    Raises:
        ValueError: a mapping with missing, additional or wrongly shaped rows, or a value that is not
            finite.
    """
    if not isinstance(init, Mapping):
        rows = torch.full((len(names), len(tasks)), float(init))
    elif set(init) == set(tasks):
        rows = torch.tensor([float(init[task]) for task in tasks]).repeat(len(names), 1)
    else:
        rows = _rows_by_name(init, names, tasks)
    if not torch.isfinite(rows).all():
        raise ValueError(f"`init` must hold finite numbers. Found {init!r}.")
    return rows


def _rows_by_name(init: Mapping[str, Any], names: Sequence[str], tasks: Sequence[str]) -> Tensor:
    missing = [name for name in names if name not in init]
    extra = [name for name in init if name not in names]
    if missing or extra:
        raise ValueError(
            f"`init` must have one value for each task {list(tasks)}, or one row for each of {len(names)} "
            f"merged tensors. Of these it lacks {missing[:3]}; it has {extra[:3]} beside."
        )
    rows = torch.stack([torch.as_tensor(init[name], dtype=torch.float32) for name in names])
    if rows.shape != (len(names), len(tasks)):
        raise ValueError(
            f"Each row of `init` must have {len(tasks)} values, one per task. "
            f"Found shape {tuple(rows.shape[1:])}."
        )
    return rows


def _group(name: str, granularity: str) -> str:
    """Return the label that tensors of one group share."""
    if granularity == "layer":
        return name
    if granularity == "task":
        return ""
    if granularity != "block":
        raise unknown("granularity", granularity, GRANULARITIES)
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return parts[0] if numbered is None else ".".join(parts[: numbered + 1])
