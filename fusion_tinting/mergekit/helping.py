"""`--help` of mergekit's own commands at once: importing them takes seconds, so their source is read."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

SCRIPTS = {"yaml": "run_yaml", "multi": "multimerge", "pytorch": "merge_raw_pytorch"}
NAMED = {
    "verbosity": ("-v", "verbosity"),
    "num_threads": ("--num-threads", "-j"),
    "gpu_rich": ("--gpu-rich",),
}
"""Options of mergekit that are not called like their field."""


def command(name: str, more: list[click.Parameter]) -> click.Command | None:
    """Return a command with the help of mergekit's, and nothing else; None where it cannot be read.

    Args:
        name: of the command.
        more: options that are ours.
    """
    try:
        folder = Path(find_spec("mergekit").origin).parent
        script = ast.parse((folder / "scripts" / f"{SCRIPTS[name]}.py").read_text(encoding="utf-8"))
        (main,) = (part for part in script.body if getattr(part, "name", "") == "main")
        options = ast.parse((folder / "options.py").read_text(encoding="utf-8"))
        own = [p for each in main.decorator_list if isinstance(each, ast.Call) for p in _parameter(each)]
        return click.Command(name, params=[*own, *_options(options), *more], help=ast.get_docstring(main))
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError):  # another mergekit
        return None


def _parameter(call: ast.Call) -> Iterator[click.Parameter]:
    """Yield what `click.argument(…)` or `click.option(…)` makes, as far as it is written out."""
    kind = {"argument": click.Argument, "option": click.Option}.get(getattr(call.func, "attr", ""))
    if kind is not None:
        given = {key.arg: _value(key.value) for key in call.keywords if key.arg != "type"}
        yield kind([ast.literal_eval(name) for name in call.args], **given)


def _options(tree: ast.Module) -> Iterator[click.Option]:
    """Yield the options that mergekit makes of the fields of `MergeOptions`."""
    (fields,) = (part.body for part in tree.body if getattr(part, "name", "") == "MergeOptions")
    texts = {_target(part): _value(part.value) for part in tree.body if isinstance(part, ast.Assign)}
    for field in (part for part in fields if isinstance(part, ast.AnnAssign)):
        name, flag = field.target.id, ast.unparse(field.annotation) == "bool"
        dashed = name.replace("_", "-")
        names = NAMED.get(name, (f"--{dashed}/--no-{dashed}" if flag else f"--{dashed}",))
        default = _value(field.value)
        yield click.Option(
            names, default=default, show_default=default is not None, help=texts["OPTION_HELP"].get(name)
        )


def _target(assignment: ast.Assign) -> str:
    return ast.unparse(assignment.targets[0])


def _value(node: ast.expr) -> Any:
    """Return what is written out; None for what would have to be computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
