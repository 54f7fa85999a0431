"""The command `mergekit-tint`. Nothing heavy is imported until a command runs: `--help` is quick."""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit import helping

COMMANDS = {
    "learn": "Learn coefficients and tints from unlabeled inputs.",
    "yaml": "Merge by a recipe: mergekit-yaml, with `merge_method: model_tinting`.",
    "multi": "mergekit-multi, with `merge_method: model_tinting`.",
    "pytorch": "mergekit-pytorch, with `merge_method: model_tinting`.",
    "variants": "Write a loadable checkpoint per task around one shared model.",
    "show": "What is in a run: settings, and coefficients by layer.",
}
"""Name -> what `--help` says. Those of mergekit, with its options, are made in `hosted`."""

FORCE = click.Option(["--force"], is_flag=True, help="Write into a folder that is not empty.")
MOVED = click.Option(
    ["--moved"],
    multiple=True,
    metavar="OLD=NEW",
    help="A model, a run, or a folder of them, that is elsewhere now; may be repeated.",
)
LONG = 1000
"""Characters of a message: some of other libraries list all that they know."""

EXPECTED = (ValueError, OSError, RuntimeError)
"""What this package and mergekit raise for a user's mistakes; anything else is ours, and shows where."""


class Lazy(click.Group):
    """A group whose commands import what they need when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command; for one of mergekit's it is imported."""
        if name in self.commands or name not in COMMANDS:
            return super().get_command(ctx, name)
        return getattr(imported("hosted"), f"{name}_command")()

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        """Find the command, or say which one may be meant."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(str(unknown("command", args[0], COMMANDS)), ctx)
        if args and args[0] in helping.SCRIPTS and {"-h", "--help"} & {*args}:
            quick = helping.command(args[0], [FORCE, MOVED])
            if quick is not None:
                return args[0], quick, args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run as click does; the errors that are expected are messages of one line, not tracebacks."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):  # of which click makes something
            raise
        except KeyboardInterrupt as stop:
            click.echo(f"\n{one_line(stop) if stop.args else 'Stopped.'}", err=True)
            raise click.exceptions.Exit(130) from stop
        except EXPECTED as error:
            if ctx.params.get("traceback"):
                raise
            raise click.ClickException(one_line(error)) from error


def imported(module: str) -> ModuleType:
    """Import a module of this package.

    Raises:
        ClickException: mergekit is not installed.
    """
    try:
        return importlib.import_module(f"fusion_tinting.mergekit.{module}")
    except ModuleNotFoundError as error:
        if error.name != "mergekit":
            raise
        message = 'mergekit is not installed: `pip install "fusion_tinting[mergekit]"`.'
        raise click.ClickException(message) from error


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; of a bad file, where and what mergekit expects."""
    if hasattr(error, "errors"):  # pydantic's
        parts = ((".".join(map(str, each["loc"])), each["msg"]) for each in error.errors())
        return "; ".join(f"`{where}`: {what}" if where else what for where, what in parts)
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONG else f"{text[:LONG]} …"


class UserPath(click.Path):
    """A path in which `~` stands for the user's folder, wherever the shell leaves it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand, and check as click does."""
        return super().convert(os.path.expanduser(value), param, ctx)


FOLDER = UserPath(file_okay=False, path_type=Path)
FILE = UserPath(dir_okay=False, path_type=Path)


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


@main.command("learn")
@click.argument("config", type=FILE)
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.option("--quiet", is_flag=True, help="No progress bars.")
@click.option(
    "--report",
    "report_on",
    type=click.IntRange(0),
    default=500,
    show_default=True,
    metavar="INPUTS",
    help="How many inputs of a task, kept aside, the closing report looks at; 0: no report.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say how much memory is needed, and stop before the experts are loaded."
)
def learn(**given: Any) -> None:
    """Learn coefficients and tints as CONFIG says, into the folder RUN; a run found there continues."""
    imported("learn").command(**given)


@main.command("variants")
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.argument("out", type=FOLDER)
@click.option("--task", "tasks", multiple=True, help="This one only; may be repeated.")
def variants(**given: Any) -> None:
    """Write OUT/TASK, a complete checkpoint for `from_pretrained`, for every task of a run."""
    imported("variants").command(**given)


variants.params += [FORCE, MOVED]


@main.command("show")
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.option("--tensors", is_flag=True, help="A row for every tensor, however many there are.")
def show(**given: Any) -> None:
    """Show the settings of a run and its coefficients by layer."""
    imported("show").command(**given)
