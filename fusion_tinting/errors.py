"""Small helpers for the errors that users see: name near misses, list the choices."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, found: object, choices: Iterable[str]) -> ValueError:
    """Return (not raise) the error for a value that is not one of `choices`."""
    choices = list(choices)
    near = get_close_matches(str(found), choices, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else ""
    listed = ", ".join(f"`{choice}`" for choice in choices)
    return ValueError(f"Unknown {kind} `{found}`.{hint} Expected one of: {listed}.")


def same_tasks(tasks: list[str], **given: Iterable[str]) -> None:
    """Check that every mapping in `given` has exactly the keys `tasks`.

    Raises:
        ValueError: naming the mapping, the tasks it lacks and the tasks it has too many; or a task whose
            name is no string.
    """
    for task in tasks:
        if not isinstance(task, str):
            raise ValueError(f"The names of tasks must be strings. Found {task!r}.")
    for what, names in given.items():
        missing = [task for task in tasks if task not in names]
        extra = [name for name in names if name not in tasks]
        if missing or extra:
            parts = [f"has none for {missing}"] * bool(missing)
            parts += [f"has {extra}, which is none of them"] * bool(extra)
            raise ValueError(
                f"`{what}` must have one entry for each task {tasks}, but it " + " and ".join(parts) + "."
            )
