"""Paths that users give: what they mean, where models are now, and what may be written where."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from fusion_tinting.run.lock import LOCK


def absolute(model: str) -> str:
    """Local folders and files as absolute paths; anything else, such as a hub id, as it is.

    Args:
        model: as mergekit writes it, `model` or `model+lora`.
    """
    whole = Path(model).expanduser()
    if whole.exists():
        return str(whole.resolve())
    parts = map(os.path.expanduser, model.split("+"))
    return "+".join(str(Path(part).resolve()) if Path(part).exists() else part for part in parts)


def require_plain(path: str, characters: str) -> None:
    """Refuse a path that mergekit would take for something else.

    Args:
        path: of a model, or a hub id.
        characters: of which none may be in the path of one that is here.

    Raises:
        ValueError: naming the character.
    """
    found = [character for character in characters if character in path]
    if found and Path(path).expanduser().exists():
        raise ValueError(
            f"mergekit cannot read `{path}`: there is a `{found[0]}` in the path, which it gives another "
            "meaning. Rename the folder, or name a symbolic link to it."
        )


def moves_of(given: Iterable[str]) -> dict[str, str]:
    """Return old path -> new path, from `--moved OLD=NEW`.

    Args:
        given: the option's values.

    Raises:
        BadParameter: one that is no pair of paths.
    """
    moves = {}
    for text in given:
        old, equals, new = (part.rstrip("/") for part in text.partition("="))
        if not (old and equals and new):
            raise click.BadParameter(f"expected OLD=NEW, two paths. Found `{text}`.", param_hint="--moved")
        moves[old] = os.path.abspath(os.path.expanduser(new))
    return moves


def now_at(model: str, moves: Mapping[str, str]) -> str:
    """Return where a model is that was at `model`.

    Args:
        model: a path, or a hub id.
        moves: old path -> new path, of the model or of a folder that it was in.
    """
    for old, new in moves.items():
        for was in (old, os.path.abspath(os.path.expanduser(old))):
            if model == was or model.startswith(f"{was}/"):
                return new + model[len(was) :]
    return model


def require_used(moves: Mapping[str, str], models: Iterable[str]) -> None:
    """Refuse a move of what is no model here: it is mistyped.

    Args:
        moves: old path -> new path.
        models: where they were.

    Raises:
        ValueError: naming the move, and the models.
    """
    models = list(dict.fromkeys(models))
    for old, new in moves.items():
        if not any(now_at(model, {old: new}) != model for model in models):
            raise ValueError(f"`--moved {old}={new}`: none was there. They are said to be at {models}.")


def require_empty(out: Path, force: bool) -> None:
    """Refuse a file, or a folder with something in it."""
    require_folder(out)
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()) and not force:
        raise ValueError(f"`{out}` is not empty. Choose another folder, or add `--force` to write into it.")


def require_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written."""
    above = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not above.is_dir():
        raise NotADirectoryError(f"`{folder}` cannot be a folder: `{above}` is none.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"`{folder}` cannot be written: no permission to write in `{above}`.")


def require_other(out: Path, models: Iterable[Path]) -> None:
    """Refuse a folder that is one of the models': its weights would be removed first."""
    if out.resolve() in {model.resolve() for model in models}:
        raise ValueError(
            f"`{out}` is itself one of the models, which would be lost. Choose another folder."
        )
