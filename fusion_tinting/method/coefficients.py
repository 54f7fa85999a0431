"""Merging coefficients λ: how many there are, where they start, how they are kept in [0, 1]."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion_tinting.errors import unknown

GRANULARITIES = ("layer", "block", "task")


class Coefficients(nn.Module):
    """λ, one value per group of tensors and task; called, it gives one row per tensor.

    With g(l) the group of tensor l,  λ_lk = clamp(raw[g(l), k], 0, 1).

    The clamp is inside autograd, as in the released code: outside [0, 1] the gradient is zero and only
    Adam's momentum moves the raw value. What is stored and exported is the effective, clamped λ.

    Args:
        names: the L tensor names.
        tasks: the K task names.
        init: start value of every λ (paper: 0.3), or effective values: tensor name -> (K,).
        granularity: `layer` gives every tensor its own row (the paper's layer-wise λ), `block`
            one row to each numbered block and to each remaining top-level module, `task` one row to all.
        clamp: whether λ is kept in [0, 1].

    Raises:
        ValueError: unknown granularity; an initial mapping with missing or wrongly shaped rows.
    """

    def __init__(
        self,
        names: list[str],
        tasks: list[str],
        *,
        init: float | Mapping[str, Tensor] = 0.3,
        granularity: str = "layer",
        clamp: bool = True,
    ):
        super().__init__()
        self.names, self.tasks, self.clamp = names, tasks, clamp
        labels = [_group(name, granularity) for name in names]
        first = {label: labels.index(label) for label in dict.fromkeys(labels)}
        order = {label: row for row, label in enumerate(first)}
        self.register_buffer("group", torch.tensor([order[label] for label in labels]))
        rows = _initial_rows(init, names, len(tasks))
        self.raw = nn.Parameter(rows[list(first.values())])

    def forward(self) -> Tensor:
        """The effective λ, shape (L, K)."""
        lam = self.raw.clamp(0, 1) if self.clamp else self.raw
        return lam[self.group]

    @torch.no_grad()
    def named(self) -> dict[str, Tensor]:
        """Tensor name -> the K effective values, tasks in order; copies on the CPU."""
        return dict(zip(self.names, self().cpu().clone().unbind(0), strict=True))


def _group(name: str, granularity: str) -> str:
    """The label that tensors of one group share."""
    if granularity == "layer":
        return name
    if granularity == "task":
        return ""
    if granularity != "block":
        raise unknown("granularity", granularity, GRANULARITIES)
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return parts[0] if numbered is None else ".".join(parts[: numbered + 1])


def _initial_rows(init: float | Mapping[str, Tensor], names: list[str], k: int) -> Tensor:
    if not isinstance(init, Mapping):
        return torch.full((len(names), k), float(init))
    missing = [name for name in names if name not in init]
    if missing:
        raise ValueError(
            f"The initial coefficients have no row for {len(missing)} tensor(s), "
            f"`{missing[0]}` first. Expected one row for each merged tensor."
        )
    rows = torch.stack([torch.as_tensor(init[name], dtype=torch.float32) for name in names])
    if rows.shape != (len(names), k):
        raise ValueError(
            f"Each row of initial coefficients must have {k} values, one per task. "
            f"Found shape {tuple(rows.shape[1:])}."
        )
    return rows
