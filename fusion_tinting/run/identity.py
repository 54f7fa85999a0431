"""When two runs are the same: what a folder must say before a run in it is continued or loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fusion_tinting.errors import of_task
from fusion_tinting.method.named import UNNAMED
from fusion_tinting.method.precision import FULL
from fusion_tinting.method.sampling import DEFAULT_SHARE
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import TintedNetwork
from fusion_tinting.method.tints import AUTO
from fusion_tinting.run.answers import OTHERWISE, Answer, answers, same
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.unlabeled import Unlabeled

GIVE_A_NAME = (
    "so that nobody can tell whether it is still the same: give it one, `fusion_tinting.Named('my-own-1', "
    "function)`, and start in another folder"
)
TRUE_HALF = "bfloat16-true"
"""The precision of a run whose models are of bfloat16; `bfloat16` alone is that of their passes."""
BESIDE = " (a frozen parameter, buffer, attribute, hook or `forward` of it)"


@dataclass(frozen=True)
class Identity:
    """What must be equal for a run folder to hold the same run.

    What release 0.1.0 did not write, the last three and the precision, is compared where it is there. Where
    task vectors were kept (`storage`) is not: it changes no result.

    Attributes:
        tasks: the task names, in order.
        settings: as `Settings.to_json` gives them, the `split` of the data, the `precision` of the passes.
        models: task, or `_pretrained_` -> content hash of its merged tensors.
        heads: task -> content hash of its head.
        samples: task -> number of inputs.
        data: task -> fingerprint of three of its inputs.
        layer: name of the tinted layer, however the settings spell it; None without a tint or before one is
            chosen.
        contents: `models` and `heads` -> name -> hash of what each is beside the tensors above (frozen
            parameters, buffers, attributes, hooks, an edited `forward`); the `libraries` of their classes,
            with other versions of which these are not compared; `data` -> task -> content of its inputs.
        answers: task -> what θ₀ and its head answer; see `answers`.
    """

    tasks: list[str]
    settings: Mapping[str, Any]
    models: Mapping[str, str]
    heads: Mapping[str, str]
    samples: Mapping[str, int]
    data: Mapping[str, str]
    layer: str | None = None
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: TintedNetwork,
        settings: Settings,
        unlabeled: Mapping[str, Unlabeled],
        split: str | None,
        processes: Processes,
    ) -> "Identity":
        """Return the identity of the run that these make.

        Args:
            model: that will be trained.
            settings: of the adaptation.
            unlabeled: task -> its inputs.
            split: the part of the data that they are.
            processes: in whose precision models run; how many there are does not count.
        """
        fingerprints, contents = {}, {}
        for task, inputs in unlabeled.items():
            with of_task(task):
                fingerprints[task], contents[task] = inputs.fingerprint(), inputs.content()
        return cls(
            tasks=model.tasks,
            settings={**settings.to_json(), "split": split, "precision": _precision(model, processes)},
            models=model.vectors.hashes,
            heads=model.head_hashes,
            samples={task: len(inputs) for task, inputs in unlabeled.items()},
            data=fingerprints,
            layer=model.layer,
            contents=model.contents | {"data": contents},
            answers=answers(model, unlabeled),
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
        kinds = {entry.name: dict for entry in fields(cls)} | {"tasks": list, "layer": str | None}
        added: dict[str, Any] = {"layer": None, "contents": {}, "answers": {}}
        whole = {**added, **value} if isinstance(value, dict) else {}
        if all(name in whole and isinstance(whole[name], kind) for name, kind in kinds.items()):
            return cls(**{name: whole[name] for name in kinds})
        raise ValueError(f"`{path}` is damaged: it does not say whose run it is. Delete it to start anew.")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    def told(self) -> dict[str, Any]:
        """Return what `RunInfo` tells of it."""
        names = ("samples", "data", "contents", "answers")
        return {"precision": self.settings["precision"], **{name: getattr(self, name) for name in names}}

    def require_same(self, other: "Identity", run_dir: Path) -> None:
        """Refuse the run folder of another run.

        Args:
            other: the run in the folder.
            run_dir: the folder.

        Raises:
            ValueError: naming each difference. Which samples are visited follows from the settings, so that
                samples and data are named only where nothing else differs.
        """
        found = [*self._of_settings(other), *self._of_models(other)]
        found = found or [*self._of_data(other)] or [*self._of_answers(other)]
        if found:
            raise ValueError(
                f"`{run_dir}` holds another run: {'; '.join(found)}. "
                "Choose another `run_dir`, or delete this one."
            )

    def _of_settings(self, other: "Identity") -> Iterator[str]:
        if other.tasks != self.tasks:
            yield f"tasks are {other.tasks} there and {self.tasks} here"
        for name, value in self.settings.items():
            if UNNAMED in str(value):
                yield f"settings.{name} is {value!r}, {GIVE_A_NAME}"
        there, here = dict(other.settings), dict(self.settings)
        here |= {} if "precision" in there else {"precision": None}
        meant_there, meant_here = (_meant(one.settings, self.tasks) for one in (other, self))
        if AUTO not in (there.get("layer"), here.get("layer")) and other.layer == self.layer is not None:
            meant_there["layer"] = meant_here["layer"] = self.layer
        for name in {**there, **here}:
            if there.get(name) != here.get(name) and meant_there.get(name) != meant_here.get(name):
                yield _differs(f"settings.{name}", there.get(name), here.get(name))

    def _of_models(self, other: "Identity") -> Iterator[str]:
        for part in ("models", "heads"):
            yield from _differences(part, getattr(other, part), getattr(self, part))
            yield from differing_contents(other.contents, self.contents, part)

    def _of_data(self, other: "Identity") -> Iterator[str]:
        for part in ("samples", "data"):
            yield from _differences(part, getattr(other, part), getattr(self, part))
        if "data" in other.contents:
            yield from _differences("contents.data", other.contents["data"], self.contents["data"])

    def _of_answers(self, other: "Identity") -> Iterator[str]:
        for task, answer in other.answers.items():
            if task in self.answers and not same(answer, self.answers[task]):
                yield OTHERWISE.format(task=task)


def _precision(model: TintedNetwork, processes: Processes) -> str:
    return processes.precision if model.precision == FULL else TRUE_HALF


def differing_contents(
    there: Mapping[str, Mapping[str, str]], here: Mapping[str, Mapping[str, str]], part: str
) -> Iterator[str]:
    """Yield which models or heads are not those of a run, by what they are beside their tensors.

    Args:
        there: `contents` of the run.
        here: `contents` of these models.
        part: `models` or `heads`.
    """
    if there.get("libraries") == here["libraries"]:
        yield from _differences(f"contents.{part}", there.get(part, {}), here[part])


def _differences(part: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            yield _differs(f"{part}.{name}", there.get(name), here.get(name))


def _differs(what: str, there: object, here: object) -> str:
    hint = BESIDE if what.startswith(("contents.models", "contents.heads")) else ""
    return f"{what} is {there!r} there and {here!r} here{hint}"


def _meant(settings: Mapping[str, Any], tasks: list[str]) -> dict[str, Any]:
    """Return settings in one spelling for each meaning, without what changes no result."""
    meant = dict(settings)
    for name in ("init", "objective"):
        value = meant.get(name)
        meant[name] = value if isinstance(value, Mapping) else dict.fromkeys(tasks, value)
    for name in ("lr_coefficients", "lr_tints"):
        meant[name] = meant.get("lr") if meant.get(name) is None else meant[name]
    kind, _, share = str(meant.get("sampler")).partition(":")
    if kind == "top_confidence":
        meant["sampler"] = kind, float(share or DEFAULT_SHARE)
    meant.pop("gradient_checkpointing", None)
    meant["task_vectors"] = meant.get("task_vectors", {}).get("dtype", "fp32")
    return meant
