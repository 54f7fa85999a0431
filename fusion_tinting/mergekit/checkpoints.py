"""Checkpoints by the names of their tensors on disk: what is in one, and whether an output is whole."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


class Header(NamedTuple):
    """What a file says of a tensor without reading it."""

    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model: safetensors, or PyTorch's own, read without running code.

    Attributes:
        folder: where it is.
        files: tensor name -> the name of its file.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def open(cls, model: str) -> "Checkpoint":
        """Open a checkpoint.

        Args:
            model: a local folder, a file of tensors, or a hub id.

        Raises:
            FileNotFoundError: no such folder, and nothing of that name can be reached.
            ValueError: a folder without a checkpoint, or a damaged one.
        """
        path = Path(model)
        if path.is_file():
            return cls(path.parent, dict.fromkeys(headers(path), path.name))
        folder = path if path.is_dir() else _download(model)
        try:
            with _reading(folder):
                return cls(folder, ShardedTensorIndex.from_disk(str(folder)).tensor_paths)
        except RuntimeError as error:
            raise ValueError(
                f"`{model}` has no checkpoint: neither `model.safetensors` nor `{INDEX}` is there. "
                "`save_pretrained` writes one."
            ) from error

    def tensor(self, name: str) -> Tensor:
        """Read one tensor from its file."""
        path = self.folder / self.files[name]
        with _reading(path):
            if path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)[name]
            with safe_open(path, "pt") as file:
                return file.get_tensor(name)

    def headers(self) -> dict[str, Header]:
        """Tensor name -> what its file says of it; the tensors themselves are not read."""
        by_name: dict[str, Header] = {}
        for name in dict.fromkeys(self.files.values()):
            by_name |= headers(self.folder / name)
        lost = [name for name in self.files if name not in by_name]
        if lost:
            raise ValueError(f"`{self.folder}` names tensors that its files do not hold: {lost[:5]}.")
        return {name: by_name[name] for name in self.files}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape; the tensors themselves are not read."""
        return {name: header.shape for name, header in self.headers().items()}


def headers(path: Path) -> dict[str, Header]:
    """Return what a file of tensors holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing.")
    with _reading(path):
        if path.suffix != ".safetensors":
            tensors = torch.load(path, map_location="meta", weights_only=True)
            tensors = tensors.get("state_dict", tensors)
            return {name: Header(tuple(t.shape), t.is_floating_point()) for name, t in tensors.items()}
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
            return {name: Header(tuple(p.get_shape()), "F" in p.get_dtype()) for name, p in parts.items()}


def require_same(output: Mapping, wanted: Mapping, what: str, advice: str) -> None:
    """Refuse an output whose tensors are not those of the checkpoint that it stands for.

    Args:
        output: tensor name -> shape.
        wanted: the same of that checkpoint.
        what: how the output is called in the error.
        advice: what to do.

    Raises:
        ValueError: naming tensors that are missing or of another shape.
    """
    missing = [name for name in wanted if name not in output]
    wrong = [n for n, shape in wanted.items() if n in output and output[n] != shape]
    if missing or wrong:
        parts = [f"{len(missing)} tensor(s) are missing: {missing[:5]}"] * bool(missing)
        shapes = ", ".join(f"{name} {output[name]}, not {wanted[name]}" for name in wrong[:5])
        parts += [f"{len(wrong)} have another shape: {shapes}"] * bool(wrong)
        raise ValueError(f"{what}: {'; '.join(parts)}. {advice}")


def _download(model: str) -> Path:
    reference = ModelReference.parse(model)
    try:
        if HF_HUB_OFFLINE:  # mergekit asks the hub for a list of files, even of what is here
            return Path(snapshot_download(reference.model.path, revision=reference.model.revision))
        return Path(reference.local_path())
    except Exception as error:  # many kinds: offline, no such id, no access
        raise FileNotFoundError(
            f"`{model}` is neither a folder nor a model that can be reached: {error}"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is cut short or holds no tensors: {error}") from error
