"""mergekit's own commands, with all their options, our merge method known, and their output checked."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import yaml

from fusion_tinting.mergekit import recipes
from fusion_tinting.mergekit.method import register


def yaml_command() -> click.Command:
    """`mergekit-tint yaml RECIPE OUT`."""
    from mergekit.scripts.run_yaml import main as theirs

    def run(config_file: str, out_path: str, force: bool, **options) -> None:
        recipe, out = recipes.read(Path(config_file)), Path(out_path)
        recipes.check(recipe, out, force)
        with tempfile.TemporaryDirectory() as folder:
            # Absolute paths: mergekit's model card asks the hub about a relative one.
            path = Path(folder) / "recipe.yml"
            path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
            theirs.callback(config_file=str(path), out_path=str(out.resolve()), **options)
        recipes.check_output(recipe, out)

    force = click.Option(["--force"], is_flag=True, help="Write into a folder that is not empty.")
    return _like(theirs, "yaml", run, force)


def multi_command() -> click.Command:
    """`mergekit-tint multi CONFIG`."""
    from mergekit.scripts.multimerge import main as theirs

    return _like(theirs, "multi", theirs.callback)


def pytorch_command() -> click.Command:
    """`mergekit-tint pytorch CONFIG OUT`."""
    from mergekit.scripts.merge_raw_pytorch import main as theirs

    return _like(theirs, "pytorch", theirs.callback)


def _like(theirs: click.Command, name: str, callback: Callable, *more: click.Option) -> click.Command:
    register()
    return type(theirs)(
        name=name,
        params=[*theirs.params, *more],
        callback=callback,
        help=theirs.help or f"mergekit's own `{theirs.name}`, with `merge_method: model_tinting`.",
    )
