"""`mergekit-tint show RUN`: the settings and the coefficients of a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch
from torch import Tensor

from fusion_tinting.mergekit.run_files import CoefficientFile
from fusion_tinting.reporting import plots
from fusion_tinting.reporting.tables import Table, show
from fusion_tinting.run.artifact import COEFFICIENTS
from fusion_tinting.run.manifest import Manifest, Source

FEW = 24
"""Up to so many tensors are shown one by one; more are averaged by block."""


def command(run_dir: Path, tensors: bool) -> None:
    """Show the settings of a run and its coefficients by layer.

    Args:
        run_dir: the run's folder.
        tensors: whether each has a row, however many there are.
    """
    manifest = Manifest.read(run_dir)
    file = CoefficientFile(run_dir / COEFFICIENTS)
    manifest.check_files(run_dir)
    for what, text in _facts(manifest):
        click.echo(f"{what:<12}{text}")
    mark = set(manifest.tinted_tensors)
    rows = {f"{name} (tinted)" if name in mark else name: row for name, row in file.rows.items()}
    many = len(rows) > FEW and not tensors
    show(coefficient_table(file.tasks, by_block(rows) if many else rows))
    if many:
        click.echo(f"Means of {len(rows)} tensors by block; `--tensors` shows every one.")
    heat_map = run_dir / "coefficients.png"
    if not heat_map.is_file():
        plots.save(plots.coefficient_map(file.rows, file.tasks), heat_map)
    click.echo(f"heat map    {heat_map}")


def by_block(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean row of each numbered block, and of each module outside them, in their order.

    Args:
        rows: tensor name -> λ, (K,).
    """
    groups: dict[str, list[Tensor]] = {}
    for name, row in rows.items():
        block = re.match(r".*?\.\d+(?=\.)", name)
        tinted = " (tinted)" if name.endswith(" (tinted)") else ""
        groups.setdefault((block.group() if block else name.rpartition(".")[0]) + tinted, []).append(row)
    return {group: torch.stack(each).mean(0) for group, each in groups.items()}


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    settings = {key: value for key, value in manifest.settings.items() if value is not None}
    experts = [("expert", f"{task}: {_place(entry)}") for task, entry in manifest.experts.items()]
    taught = ", ".join(f"{task} {count}" for task, count in manifest.samples.items())
    return [
        ("base", _place(manifest.base)),
        *experts,
        ("tinted", str(manifest.layer)),
        ("settings", ", ".join(f"{key}={value}" for key, value in settings.items())),
        ("inputs", taught),
        ("cost", f"{manifest.steps} steps, {manifest.seconds} s"),
    ]


def _place(model: Source) -> str:
    gone = model.id is not None and Path(model.id).is_absolute() and not Path(model.id).exists()
    return f"{model.id} (not there; see `variants --moved`)" if gone else str(model.id)


def coefficient_table(tasks: Sequence[str], rows: Mapping[str, Tensor]) -> Table:
    """Return the table of λ, with the mean over its rows.

    Args:
        tasks: the names of the K tasks.
        rows: tensor or layer -> λ, (K,).
    """
    return Table(
        ["layer", *tasks],
        [[name, *row.tolist()] for name, row in rows.items()],
        title="Merging coefficients λ",
        summary=["mean", *torch.stack(list(rows.values())).mean(0).tolist()],
        digits=".3f",
    )
