"""`tinting.json`: what an artifact says of the run that it came from, and of the files beside it."""

import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import torch

from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.files import read_json, sha256
from fusion_tinting.run.identity import Identity
from fusion_tinting.run.info import RunInfo

FORMAT_VERSION = 1
MANIFEST = "tinting.json"
NEEDED: dict[str, Any] = {
    "tasks": list,
    "layer": str | None,
    **dict.fromkeys(("base", "experts", "heads", "settings", "samples", "data"), dict),
}
"""What a manifest must have, and the kind of each."""
PACKAGES = ("fusion-tinting", "torch", "transformers", "fusion-bench")


@dataclass(frozen=True)
class Source:
    """A model that the run read.

    Attributes:
        id: its path or hub id; None where only the caller knows it.
        sha256: content hash of its merged tensors.
    """

    id: str | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `tinting.json`.

    Attributes:
        tasks: the task names, in the order of the columns of λ.
        layer: name of the tinted layer; None without a tint.
        base: the pre-trained model.
        experts: task -> its expert.
        heads: task -> content hash of its head.
        settings: as `Settings.to_json` gives them.
        samples: task -> number of inputs that taught.
        data: task -> fingerprint of its inputs.
        precision: see `Identity`, as the next two; an artifact of 0.1.0 has none of them.
        contents: see `Identity`.
        answers: see `Identity`.
        tinted_tensors: names on disk of the merged tensors that the tint replaces.
        layer_choice: see `RunInfo`.
        split: see `RunInfo`.
        steps: iterations.
        skipped_steps: steps of one task in which nothing taught.
        seconds: see `RunInfo`.
        peak_memory_bytes: see `RunInfo`.
        versions: package -> its version.
        files: name of every file in the folder that a run is loaded from -> its sha256.
        method: `model_tinting`.
        format_version: of the folder.
    """

    tasks: list[str]
    layer: str | None
    base: Source
    experts: dict[str, Source]
    heads: dict[str, str]
    settings: Mapping[str, Any]
    samples: Mapping[str, int]
    data: Mapping[str, str]
    precision: str | None = None
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tinted_tensors: list[str] = field(default_factory=list)
    layer_choice: Mapping[str, list[float]] | None = None
    split: str | None = None
    steps: int = 0
    skipped_steps: int = 0
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    method: str = "model_tinting"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, run_dir: Path) -> "Manifest":
        """Read the manifest of a finished run.

        Args:
            run_dir: the artifact folder.

        Raises:
            FileNotFoundError: no finished run there.
            ValueError: a damaged manifest, or one of a newer format.
        """
        path = run_dir / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"`{run_dir}` holds no finished run: `{MANIFEST}` is missing. Expected an artifact folder "
                "(a run that was interrupted continues when it is started again with this `run_dir`)."
            )
        content = read_json(path)
        written = content.get("format_version")
        if isinstance(written, int) and written > FORMAT_VERSION:
            raise ValueError(
                f"`{path}` has format version {written}; this version of fusion_tinting reads up to "
                f"{FORMAT_VERSION}. Upgrade fusion_tinting."
            )
        if lacking := _lacking(content):
            raise ValueError(
                f"`{path}` is no manifest of fusion_tinting: it lacks {lacking}, or they are wrong."
            )
        experts = {task: _source(entry) for task, entry in content["experts"].items()}
        known = {entry.name for entry in fields(cls)} - {"base", "experts"}
        rest = {name: value for name, value in content.items() if name in known and value is not None}
        return cls(**{"layer": None, **rest}, base=_source(content["base"]), experts=experts)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return asdict(self)

    @property
    def identity(self) -> Identity:
        """Which run it was."""
        models = {PRETRAINED: self.base.sha256}
        models |= {task: expert.sha256 for task, expert in self.experts.items()}
        settings = {**self.settings, "split": self.split}
        settings |= {} if self.precision is None else {"precision": self.precision}
        return Identity(
            tasks=self.tasks,
            settings=settings,
            models=models,
            heads=self.heads,
            samples=self.samples,
            data=self.data,
            layer=self.layer,
            contents=self.contents,
            answers=self.answers,
        )

    def info(self, tensor_names: Mapping[str, str]) -> RunInfo:
        """Return what is known of the run.

        Args:
            tensor_names: parameter name -> its name in the artifact, where they differ.
        """
        ids = {PRETRAINED: self.base.id, **{task: expert.id for task, expert in self.experts.items()}}
        return RunInfo(
            ids=ids,
            split=self.split,
            tensor_names=dict(tensor_names),
            layer_choice=self.layer_choice,
            settings=self.settings,
            samples=self.samples,
            data=self.data,
            precision=self.precision,
            contents=self.contents,
            answers=self.answers,
            seconds=self.seconds,
            peak_memory_bytes=self.peak_memory_bytes,
        )

    def check_files(self, run_dir: Path) -> None:
        """Refuse an artifact whose files are not those that its manifest was written for.

        Args:
            run_dir: the artifact folder. Only what is within is looked at.

        Raises:
            FileNotFoundError: one is missing; curves may be.
            ValueError: naming the file that has changed, or is none of the folder's.
        """
        for name, digest in self.files.items():
            path, parts = run_dir / name, PurePath(name).parts
            if ".." in parts or PurePath(name).is_absolute() or not parts:
                raise ValueError(
                    f"`{run_dir / MANIFEST}` names the file `{name}`, which is not in its folder."
                )
            if not path.is_file():
                if path.suffix == ".csv" and not os.path.lexists(path):
                    continue
                raise FileNotFoundError(f"`{path}` is missing, or is no file.")
            check_file(path, digest)


def check_file(path: Path, digest: str) -> None:
    """Refuse a file that is not the one that a manifest was written for.

    Args:
        path: of the file.
        digest: its sha256 in the manifest.

    Raises:
        ValueError: naming the file.
    """
    if sha256(path) != digest:
        raise ValueError(
            f"`{path}` has changed since the run was finished: its sha256 is not the one in `{MANIFEST}`. "
            "Restore the file; or, if you changed it yourself, take `files` out of that."
        )


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on, those that are installed."""
    versions = {package: _version(package) for package in PACKAGES}
    return {package: found for package, found in versions.items() if found is not None}


@cache  # reading a package's metadata takes milliseconds
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory() -> int:
    """Return bytes: the GPU's peak where one is used, else this process's peak resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _lacking(content: Mapping[str, Any]) -> list[str]:
    """Return what a manifest must have and has not."""
    lacking = [k for k, kind in NEEDED.items() if k not in content or not isinstance(content[k], kind)]
    if not lacking:
        models = {"base": content["base"], **content["experts"]}
        lacking = [f"sha256 of {name}" for name, entry in models.items() if not _is_source(entry)]
        lacking += [f"expert {task}" for task in content["tasks"] if task not in content["experts"]]
    return lacking


def _is_source(entry: object) -> bool:
    return isinstance(entry, dict) and "id" in entry and isinstance(entry.get("sha256"), str)


def _source(entry: Mapping[str, Any]) -> Source:
    return Source(entry["id"], entry["sha256"])
