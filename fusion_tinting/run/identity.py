"""When two runs are the same: what a folder must say before a run in it is continued or loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.run.unlabeled import Unlabeled


@dataclass(frozen=True)
class Identity:
    """What must be equal for a run folder to hold the same run.

    Attributes:
        tasks: the task names, in order.
        settings: as `Settings.to_json` gives them, and the `split` of the data.
        models: task, or `_pretrained_` -> content hash of its merged tensors.
        heads: task -> content hash of its head.
        samples: task -> number of inputs.
        data: task -> fingerprint of its inputs.
    """

    tasks: list[str]
    settings: Mapping[str, Any]
    models: Mapping[str, str]
    heads: Mapping[str, str]
    samples: Mapping[str, int]
    data: Mapping[str, str]

    @classmethod
    def of(
        cls,
        model: TintedNetwork,
        settings: Settings,
        unlabeled: Mapping[str, Unlabeled],
        split: str | None,
    ) -> "Identity":
        """Return the identity of the run that these make.

        Args:
            model: that will be trained.
            settings: of the adaptation.
            unlabeled: task -> its inputs.
            split: the part of the data that they are.
        """
        return cls(
            tasks=model.tasks,
            settings={**settings.to_json(), "split": split},
            models=model.vectors.hashes,
            heads=model.head_hashes,
            samples={task: len(inputs) for task, inputs in unlabeled.items()},
            data={task: inputs.fingerprint() for task, inputs in unlabeled.items()},
        )

    @classmethod
    def from_json(cls, value: object, path: Path) -> "Identity":
        """Read what `to_json` gave.

        Args:
            value: from a file of a run.
            path: the file, for the error.

        Raises:
            ValueError: it is something else.
        """
        kinds = {entry.name: list if entry.name == "tasks" else dict for entry in fields(cls)}
        if isinstance(value, dict) and all(isinstance(value.get(n), kind) for n, kind in kinds.items()):
            return cls(**{name: value[name] for name in kinds})
        raise ValueError(f"`{path}` is damaged: it does not say whose run it is. Delete it to start anew.")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def require_same(self, other: "Identity", run_dir: Path) -> None:
        """Refuse the run folder of another run.

        Args:
            other: the run in the folder.
            run_dir: the folder.

        Raises:
            ValueError: naming each difference. Which samples are visited follows from the settings, so that
                samples and data are named only where nothing else differs.
        """
        differences = []
        if other.tasks != self.tasks:
            differences.append(f"tasks are {other.tasks} there and {self.tasks} here")
        for part in ("settings", "models", "heads", "samples", "data"):
            if differences and part in ("samples", "data"):
                continue
            there, here = getattr(other, part), getattr(self, part)
            differences += [
                f"{part}.{key} is {there.get(key)!r} there and {here.get(key)!r} here"
                for key in {**there, **here}
                if there.get(key) != here.get(key)
            ]
        if differences:
            raise ValueError(
                f"`{run_dir}` holds another run: {'; '.join(differences)}. "
                "Choose another `run_dir`, or delete this one."
            )
