"""Small helpers for the errors that users see: name near misses, list the choices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any
from unicodedata import category

UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters, and breaks of lines and paragraphs."""


def unknown(kind: str, value: object, choices: Iterable[str]) -> ValueError:
    """Return (not raise) the error for a value that is not one of `choices`.

    Args:
        kind: what the value is, such as `sampler`.
        value: the value that was given.
        choices: the values that there are; the one that is spelled most alike is suggested.
    """
    choices = list(choices)
    near = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    listed = ", ".join(f"`{choice}`" for choice in choices)
    return ValueError(f"Unknown {kind} `{value}`.{hint} Expected one of: {listed}.")


def abbreviate(names: Sequence[str]) -> str:
    """Return the first three of many names, and how many more there are, for a message.

    Args:
        names: of tensors, files or the like.
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{list(names[:3])}{more}" if names else "none"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Make a `ValueError` that says where of what a user's data or model raises.

    Args:
        what: did not work.

    Raises:
        ValueError: as it is, or made of another error; too little memory stays what it is.
    """
    try:
        yield
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # whatever it is
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported for this
            raise
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


@contextmanager
def of_task(task: str) -> Iterator[None]:
    """Name the task in a `ValueError`.

    Args:
        task: its name.

    Raises:
        ValueError: with it.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Task `{task}`: {error}") from error


def require_rows(returned: Any, count: int, what: str, wanted: str, right: bool = True) -> None:
    """Refuse what a function of the user's returned, unless it is a tensor with one entry for each sample.

    Args:
        returned: by the function.
        count: of samples.
        what: the function is, for the error.
        wanted: of it.
        right: whether the entries are of the kind that is wanted.

    Raises:
        ValueError: it is something else.
    """
    shape = tuple(getattr(returned, "shape", ()))
    if hasattr(returned, "requires_grad") and shape == (count,) and right:
        return
    found = f"shape {shape}, {returned.dtype}" if hasattr(returned, "dtype") else type(returned).__name__
    raise ValueError(f"The {what} must return {wanted}, a tensor of shape (batch,). Found {found}.")


def require_mappings(**entries: object) -> None:
    """Refuse what should hold something for each task, and does not name them.

    Args:
        **entries: what the mapping is called -> what was given.

    Raises:
        ValueError: naming it.
    """
    for name, entry in entries.items():
        if not (isinstance(entry, Mapping) or hasattr(entry, "keys")):  # a `ModuleDict` has them
            found = type(entry).__name__
            raise ValueError(f"`{name}` must map each task to its own, `{{task: ...}}`. Found a {found}.")


def same_tasks(tasks: Sequence[str], **entries: Iterable[str]) -> None:
    """Check that every mapping in `entries` has exactly the keys `tasks`.

    Args:
        tasks: the names of the tasks.
        **entries: what the mapping is called -> the mapping.

    Raises:
        ValueError: naming the mapping, the tasks it lacks and the tasks it has too many; or a task whose
            name is no string, or none that can be written into a line of a file.
    """
    for task in tasks:
        if not isinstance(task, str):
            raise ValueError(f"The names of tasks must be strings. Found {task!r}.")
        if not task.strip() or any(category(character) in UNWRITABLE for character in task):
            raise ValueError(
                "The names of tasks must have letters, and no line breaks or other control characters. "
                f"Found {task!r}."
            )
    if not tasks:
        raise ValueError("There are no tasks: `experts` is empty. Expected `{task: its expert}`.")
    for what, names in entries.items():
        names = list(names)
        missing = [task for task in tasks if task not in names]
        extra = [name for name in names if name not in tasks]
        if missing or extra:
            parts = [f"has none for {missing}"] * bool(missing)
            parts += [f"has {extra}, which is none of them"] * bool(extra)
            raise ValueError(
                f"`{what}` must have one entry for each task {list(tasks)}, but it "
                + " and ".join(parts)
                + "."
            )
