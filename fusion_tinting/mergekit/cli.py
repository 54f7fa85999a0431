"""The command `mergekit-tint`. Nothing heavy is imported until a command runs: `--help` is quick."""

import importlib
from pathlib import Path
from typing import Any

import click

COMMANDS = {
    "learn": ("learn", "Learn coefficients and tints from unlabeled inputs."),
    "yaml": (
        "hosted:yaml_command",
        "Merge by a recipe: mergekit-yaml, with `merge_method: model_tinting`.",
    ),
    "multi": ("hosted:multi_command", "mergekit-multi, with `merge_method: model_tinting`."),
    "pytorch": ("hosted:pytorch_command", "mergekit-pytorch, with `merge_method: model_tinting`."),
    "variants": ("variants", "Write a loadable checkpoint per task around one shared model."),
    "show": ("show", "What is in a run: settings, and coefficients by layer."),
}
"""Name -> its module (and function) in this package, and what `--help` says."""

EXPECTED = (ValueError, OSError, RuntimeError)
"""What this package and mergekit raise for a user's mistakes; anything else is ours, and shows where."""


class Lazy(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        try:
            loaded = importlib.import_module(f"fusion_tinting.mergekit.{module}")
        except ModuleNotFoundError as error:
            if error.name != "mergekit":
                raise
            raise click.ClickException(
                'mergekit is not installed: `pip install "fusion_tinting[mergekit]"`.'
            ) from error
        return getattr(loaded, attribute)() if attribute else loaded.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run as click does; the errors that are expected are messages of one line, not tracebacks."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # which are RuntimeErrors
            raise
        except EXPECTED as error:
            if ctx.params.get("traceback"):
                raise
            raise click.ClickException(one_line(error)) from error


def one_line(error: Exception) -> str:
    """Return an error's message in one line; of a bad file, where and what mergekit expects."""
    if hasattr(error, "errors"):  # pydantic's
        parts = ((".".join(map(str, each["loc"])), each["msg"]) for each in error.errors())
        return "; ".join(f"`{where}`: {what}" if where else what for where, what in parts)
    return " ".join(str(error).split()) or type(error).__name__


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.version_option(package_name="fusion_tinting")
def main(traceback: bool) -> None:
    r"""Model Tinting for mergekit: learn, merge, ship one shared model and small tints.

    \b
      mergekit-tint learn CONFIG.yml RUN
      mergekit-tint yaml RUN/recipe.yml OUT
      mergekit-tint variants RUN OUT
    """


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
