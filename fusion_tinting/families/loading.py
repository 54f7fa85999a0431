"""What the families share in loading a model of transformers."""

from collections.abc import Iterable

from torch import nn


def require_complete(path: str, model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a model of which transformers made tensors up that its checkpoint lacks.

    Raises:
        ValueError: naming the checkpoint and some of the tensors.
    """
    if lacking := sorted(missing):
        raise ValueError(
            f"`{path}` is no complete {type(model).__name__}: it lacks {len(lacking)} tensor(s), "
            f"{lacking[:3]}."
        )
