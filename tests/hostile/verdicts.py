"""Right, refused, unclear, silently wrong: how an attempt ended."""

import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

RIGHT, REFUSED, UNCLEAR, WRONG = "right", "refused", "unclear", "silently wrong"
KINDS = (RIGHT, REFUSED, UNCLEAR, WRONG)

LIMIT = 90
"""Seconds after which an attempt hangs."""

CLEAR = (ValueError, TypeError, OSError, RuntimeError, NotImplementedError)
"""Kinds of error in which a user is told of a mistake; a `KeyError` or an `AttributeError` is a defect."""

RAW = re.compile(
    r"^\[Errno|Error\(s\) in loading|deserializing header|Traceback|object has no attribute"
    r"|not subscriptable|not iterable|cannot pickle|required positional argument|mat1 and mat2"
    r"|unexpected keyword argument|codec can't|^Expecting |0x[0-9a-f]{8}"
)
"""What a library says of itself; it may be quoted behind what we say, not stand for it."""


@dataclass(frozen=True)
class Verdict:
    """How one attempt ended, and what was said."""

    name: str
    kind: str
    said: str = ""


def judge(
    name: str, act: Callable[[], Any], wrong: Callable[[Any], str | None], mentions: Iterable[str] = ()
) -> Verdict:
    """Do it, and say how it ended.

    `wrong` says what is wrong with a result, or None. A refusal is one line that `mentions` one of these;
    a warning that does so excuses a result that differs.
    """
    mentions = list(mentions)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with time_limit(LIMIT):
                found = act()
        except Exception as error:
            return Verdict(name, REFUSED if clear(error, mentions) else UNCLEAR, said_by(error))
    difference = wrong(found)
    if difference is None:
        return Verdict(name, RIGHT)
    said = [str(warning.message) for warning in told]
    if any(mention in text for mention in mentions for text in said):
        return Verdict(name, REFUSED, " ".join(said))
    return Verdict(name, WRONG, difference)


def clear(error: BaseException, mentions: Iterable[str]) -> bool:
    """Whether an error is one line that says what it is about."""
    text, mentions = str(error), list(mentions)
    if not isinstance(error, CLEAR) or isinstance(error, (UnicodeError, TimeoutError)) or "\n" in text:
        return False
    if raw := RAW.search(text):  # quoted at the end, behind words of ours that name the thing
        text = text[: raw.start()]
    return bool(text) and (not mentions or any(mention in text for mention in mentions))


def said_by(error: BaseException) -> str:
    """Return an error's kind and words."""
    return f"{type(error).__name__}: {error}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"Not done after {seconds} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many there are of each kind."""
    counted = Counter(verdict.kind for verdict in verdicts)
    return {kind: counted[kind] for kind in KINDS}


def as_json(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Return the counts, and all that are not right in full."""
    verdicts = list(verdicts)
    said = [asdict(verdict) for verdict in verdicts if verdict.kind != RIGHT]
    return {"tried": len(verdicts), **counts(verdicts), "not right": said}
