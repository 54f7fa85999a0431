"""Files that are whole or not there at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    Args:
        path: of the file; folders are made.
        write: writes a file at the path it is given.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write `{path}`: {error}. Free space or choose another folder; "
            "nothing half-written was left there."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Check, before any work, that the folder can be written.

    Args:
        folder: of the run.

    Raises:
        OSError: as `write_atomically`; or a file is there.
    """
    require_no_file(folder)
    probe = folder / "checkpoint" / ".probe"
    write_text(probe, "x" * 4096)
    probe.unlink()


def require_no_file(folder: Path) -> None:
    """Refuse a file where a folder will be written.

    Args:
        folder: that will be written.

    Raises:
        NotADirectoryError: a file is there.
    """
    if folder.is_file():
        raise NotADirectoryError(f"`{folder}` is a file; expected a folder, or a name that is free.")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        path: of the file.
        text: its content.
    """
    write_atomically(path, lambda temporary: _write_synced(temporary, text))


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically.

    Args:
        path: of the file.
        value: its content.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically.

    Args:
        path: of the file.
        tensors: by name.
        metadata: for its header.
    """
    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(owned, temporary, dict(metadata)))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short or is no safetensors file.
    """
    with _opened(path) as file:
        names = file.keys()  # not iterable itself
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata alone of a safetensors file; raises as `read_tensors`.

    Args:
        path: of the file.
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"`{path}` is cut short or no safetensors file: {error}.") from error


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, as `sha256sum` gives it.

    Args:
        path: of the file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short, no JSON, or another kind of it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"`{path}` is cut short or no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object. Found {str(content)[:80]}.")
    return content


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
