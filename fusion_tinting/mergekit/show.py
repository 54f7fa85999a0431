"""`mergekit-tint show RUN`: what is in a run."""

from pathlib import Path

import click
from rich.table import Table

from fusion_tinting.artifact import read_manifest
from fusion_tinting.mergekit.cli import FOLDER
from fusion_tinting.mergekit.method import CoefficientFile
from fusion_tinting.reporting.tables import show


@click.command("show")
@click.argument("run_dir", type=FOLDER, metavar="RUN")
def command(run_dir: Path) -> None:
    """Show the settings of a run and its coefficients by layer."""
    manifest = read_manifest(run_dir)
    file = CoefficientFile(run_dir / "coefficients.safetensors")
    settings = {k: v for k, v in manifest["settings"].items() if v is not None}
    click.echo(f"base       {manifest['base']['id']}")
    for task, expert in manifest["experts"].items():
        click.echo(f"expert     {task}: {expert['id']}")
    click.echo(f"tinted     {manifest['layer']}")
    click.echo(f"settings   {', '.join(f'{key}={value}' for key, value in settings.items())}")
    click.echo(f"cost       {manifest['steps']} steps, {manifest['seconds']} s")
    table = Table(title="Coefficients λ")
    table.add_column("tensor", overflow="fold")
    for task in file.tasks:
        table.add_column(task, justify="right")
    for name, row in file.rows.items():
        mark = " (tinted)" if name in manifest["tinted_tensors"] else ""
        table.add_row(name + mark, *(f"{value:.3f}" for value in row.tolist()))
    show(table)
    heat_map = run_dir / "coefficients.png"
    if heat_map.is_file():
        click.echo(f"heat map   {heat_map}")
