"""What is known of a run beside its model: where it came from, how it was made, what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What `tinting.json` says of a run; hosts know the first three, the run finds out the rest.

    Attributes:
        ids: model -> its path or hub id; the pre-trained model's key is `_pretrained_`.
        split: the part of the data whose inputs taught.
        tensor_names: parameter name -> its name in the checkpoint on disk, where they differ.
        layer_choice: layer -> its agreement with the experts in each round, where `layer` was `auto`.
        settings: as `Settings.to_json` gives them.
        samples: task -> number of inputs that taught.
        data: task -> fingerprint of its inputs.
        precision: in which models ran.
        contents: see `Identity`.
        answers: see `Identity`.
        seconds: time from the experts' predictions to the last iteration.
        peak_memory_bytes: the largest amount of memory in use since the process began.
    """

    ids: Mapping[str, str | None] = field(default_factory=dict)
    split: str | None = None
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    layer_choice: Mapping[str, list[float]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None

    def on_disk(self, name: str) -> str:
        """Return what a tensor is called in the checkpoint on disk.

        Args:
            name: of the parameter.
        """
        return self.tensor_names.get(name, name)
