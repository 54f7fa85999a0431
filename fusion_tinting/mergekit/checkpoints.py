"""Checkpoints by the names of their tensors on disk: what is in one, and whether an output is whole."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import click
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from mergekit.common import ModelReference
from torch import Tensor

from fusion_tinting.errors import abbreviate
from fusion_tinting.mergekit.run_files import stamp
from fusion_tinting.run.files import opened, read_json

FORMATS = ("model.safetensors", "pytorch_model.bin")
"""Files of a model; the first that is there, or its index, is read, as transformers and mergekit do."""
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
"""Endings of files that hold tensors."""


FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Data types that can be added up as they are: name in safetensors -> torch's. The scales of quantized
tensors, of those in eight bits too, are elsewhere."""


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
            FileNotFoundError: no such folder, and nothing of that name can be reached; or a file of its
                index is not there.
            ValueError: a folder without a checkpoint, with two, or with a damaged one.
        """
        path = Path(model)
        if path.is_file():
            return cls(path.parent, dict.fromkeys(headers(path), path.name))
        if path.is_absolute() and not path.is_dir():
            raise FileNotFoundError(
                f"`{model}` is neither a folder nor a model here. If it has moved, say where it is: "
                f"`--moved {model}=NEW`."
            )
        folder = path if path.is_dir() else _download(model)
        return cls(folder, _files(folder))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor from its file."""
        path = self.folder / self.files[name]
        if path.suffix != ".safetensors":
            return _pickled(path, stamp(path))[name]
        with opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def headers(self) -> dict[str, Header]:
        """Tensor name -> what its file says of it; the tensors themselves are not read."""
        by_name: dict[str, Header] = {}
        for name in dict.fromkeys(self.files.values()):
            by_name |= headers(self.folder / name)
        return {name: by_name[name] for name in self.files}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape; the tensors themselves are not read."""
        return {name: header.shape for name, header in self.headers().items()}


def require_floating(checkpoint: Checkpoint) -> None:
    """Refuse a model whose weights are not numbers that can be added up.

    Args:
        checkpoint: of the model.

    Raises:
        ValueError: naming the first of them.
    """
    said = checkpoint.folder / "config.json"
    told = said.is_file() and bool(read_json(said).get("quantization_config"))
    quantized = [n for n, h in checkpoint.headers().items() if n.endswith("weight") and not h.floating]
    if told or quantized:
        what = f"its `{quantized[0]}` is in integers or eight bits" if quantized else f"`{said}` says so"
        raise ValueError(
            f"`{checkpoint.folder}` is quantized ({what}), so that its tensors cannot be added up. Merge "
            "models in full or half precision, and quantize the result."
        )


def headers(path: Path) -> dict[str, Header]:
    """Return what a file of tensors holds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or a pickle of more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing.")
    if path.suffix != ".safetensors":
        tensors = _pickled(path, stamp(path))
        return {name: Header(tuple(t.shape), t.dtype in FLOATING.values()) for name, t in tensors.items()}
    with opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not iterable)
        return {name: Header(tuple(p.get_shape()), p.get_dtype() in FLOATING) for name, p in parts.items()}


def _files(folder: Path) -> dict[str, str]:
    """Return tensor name -> its file, of the one checkpoint in a folder."""
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"`{folder}` holds an adapter (`{ADAPTER}`), no whole model. Merge it into its base first, as "
            "peft's `merge_and_unload` does; a recipe may also say `model: base+adapter`."
        )
    found = [name for name in FORMATS if _is_there(folder, name)]
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS)
        raise ValueError(
            f"`{folder}` has no checkpoint: neither `{'`, `'.join(FORMATS)}` nor an index of one is there. "
            f"Other files of tensors: {abbreviate(others)}. `save_pretrained` writes what is expected."
        )
    if len(found) > 1:
        _say_once(f"`{folder}` holds `{found[0]}` and `{found[1]}`: the first is read.")
    single, index = folder / found[0], folder / f"{found[0]}.index.json"
    files = _indexed(index) if index.is_file() else dict.fromkeys(headers(single), single.name)
    if single.is_file() and {*files.values()} != {single.name}:
        raise ValueError(
            f"`{folder}` holds two models, `{single.name}` and the files of `{index.name}`: which is "
            "meant? Some programs read the one, some the other. Remove the one that is not."
        )
    return files


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.index.json").is_file()


def _indexed(index: Path) -> dict[str, str]:
    """Return the map of an index, once it is known to say what its files hold, neither more nor less."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(_is_plain(name) for name in files.values()):
        raise ValueError(
            f"`{index}` is no index of a checkpoint: expected a `weight_map` from the name of each tensor "
            "to that of a file beside it."
        )
    held = {(name, file) for file in sorted({*files.values()}) for name in headers(index.parent / file)}
    if lost := sorted(set(files.items()) - held):
        raise ValueError(f"`{index}` names tensors that its files do not hold: {abbreviate(lost)}.")
    if extra := sorted(held - set(files.items())):
        raise ValueError(
            f"The files of `{index}` hold tensors that it does not name there: {abbreviate(extra)}. Some "
            "programs would read them, some not. Save the model anew, or correct the index."
        )
    return files


def _is_plain(name: object) -> bool:
    """Return whether this is the name of a file, with no way out of its folder."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


@cache
def _say_once(text: str) -> None:
    click.echo(text, err=True)


@lru_cache(maxsize=2)
def _pickled(path: Path, written: tuple) -> dict[str, Tensor]:
    """Return the tensors in a file of PyTorch's, mapped into memory where its format allows that.

    Whatever else a pickle holds is refused, unread: it could be code.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # of many kinds, for any byte may be wrong
        found = re.search(r"GLOBAL (\S+)", str(error))
        damaged = not isinstance(error, UnpicklingError)
        why = f"it asks for `{found[1]}`" if found else str(error) if damaged else "it holds something else"
        raise ValueError(
            f"`{path}` is damaged or is no file of tensors alone, and was not loaded, for a pickle can run "
            f"code: {why}. Save the model as safetensors where it comes from."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"`{path}` holds no tensors by name, but {_kind(content)}. Expected a state dict.")
    return tensors


def _kind(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    strange = {name: t for name, t in content.items() if not isinstance(t, Tensor)}
    return ", ".join(f"`{name}`: a {type(t).__name__}" for name, t in list(strange.items())[:3])


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
