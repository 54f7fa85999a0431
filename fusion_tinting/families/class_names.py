"""The names of a task's classes, and the prompts that are made of them, as a configuration gives them."""

from collections.abc import Callable, Sequence
from pathlib import Path

TEMPLATE = "a photo of a {}."


def read_names(given: Sequence[str] | str, where: str) -> list[str]:
    """Return class names, in the order of the labels.

    Args:
        given: a list, or a text file with one a line.
        where: what an error calls the data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no names, what is no text, or a name twice.
    """
    if isinstance(given, str):
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no file `{path}` with the class names of {where}.")
        lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
        given = [line for line in lines if line]
    names = list(given)
    if not names:
        raise ValueError(
            f"There are no class names of {where}: expected a list, or a file with one a line."
        )
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"The class names of {where} must be texts (in quotes, where YAML would read `1` or `no` "
                f"otherwise). Found {name!r}."
            )
        if name in names[:place]:
            raise ValueError(
                f"Two classes of {where}, {names.index(name)} and {place}, are called `{name}`."
            )
    return names


def prompt_makers(given: Sequence[str] | str | None, where: str) -> list[Callable[[str], str]]:
    """Return what turns a class name into each prompt.

    Args:
        given: a text with `{}` for the name, or several; None stands for `TEMPLATE`.
        where: what an error calls the data.

    Raises:
        ValueError: none, or one without a place for the name.
    """
    texts = [given] if isinstance(given, str) else [TEMPLATE] if given is None else list(given)
    if not texts:
        raise ValueError(f"There is no template of {where}: expected texts such as `{TEMPLATE}`.")
    return [_maker(text, where) for text in texts]


def _maker(text: str, where: str) -> Callable[[str], str]:
    if not isinstance(text, str) or "{}" not in text:
        raise ValueError(
            f"A `template` of {where} must have `{{}}` where the class goes, as in `{TEMPLATE}`. "
            f"Found {text!r}."
        )
    return lambda name: text.replace("{}", name)
