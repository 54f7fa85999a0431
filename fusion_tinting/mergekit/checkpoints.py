"""Checkpoints by the names of their tensors on disk: what is in one, and whether an output is whole."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelReference
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files.

    Attributes:
        folder: where it is.
        files: tensor name -> the name of its file.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def open(cls, model: str) -> "Checkpoint":
        """A local folder, or a hub id.

        Raises:
            FileNotFoundError: no such folder, and nothing of that name can be reached.
            ValueError: a checkpoint without safetensors files, or a damaged one.
        """
        folder = Path(model)
        if not folder.is_dir():
            folder = _download(model)
        if (folder / INDEX).is_file():
            return cls(folder, json.loads((folder / INDEX).read_text())["weight_map"])
        single = folder / "model.safetensors"
        if not single.is_file():
            raise ValueError(
                f"`{model}` has no safetensors checkpoint (`model.safetensors` or `{INDEX}`). Convert it "
                "with `save_pretrained`; pickled weights are not loaded."
            )
        with _opened(single) as file:
            return cls(folder, dict.fromkeys(file.keys(), single.name))

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from its file."""
        with _opened(self.folder / self.files[name]) as file:
            return file.get_tensor(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape; the tensors themselves are not read."""
        found = {}
        for name in dict.fromkeys(self.files.values()):
            with _opened(self.folder / name) as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return {name: found[name] for name in self.files}

    def sized(self) -> Iterator[tuple[str, str]]:
        """(tensor name, file), file after file, so that each is opened in turn."""
        yield from sorted(self.files.items(), key=lambda item: item[1])


def require_same(output: Mapping, wanted: Mapping, what: str, advice: str) -> None:
    """Refuse an output whose tensors are not those of the checkpoint that it stands for.

    Args:
        output, wanted: tensor name -> shape.
        what: how the two are called in the error.
        advice: what to do.

    Raises:
        ValueError: naming tensors that are missing or of another shape.
    """
    missing = [name for name in wanted if name not in output]
    wrong = [n for n, shape in wanted.items() if n in output and output[n] != shape]
    if missing or wrong:
        parts = [f"{len(missing)} tensor(s) are missing: {missing[:5]}"] * bool(missing)
        parts += [f"{len(wrong)} have another shape: {wrong[:5]}"] * bool(wrong)
        raise ValueError(f"{what}: {'; '.join(parts)}. {advice}")


def _download(model: str) -> Path:
    try:
        return Path(ModelReference.parse(model).local_path())
    except Exception as error:  # many kinds: offline, no such id, no access
        raise FileNotFoundError(
            f"`{model}` is neither a folder nor a model that can be reached: {error}"
        ) from error


def _opened(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`{path}` is cut short or no safetensors file: {error}.") from error
