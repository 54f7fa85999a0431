"""Files that are whole or not there at all, and that say when a byte of them has changed since."""

import hashlib
import json
import os
import secrets
import stat
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

UNFINISHED = ".writing-"
"""How the names of files begin that are being written; after it comes the process's id."""
INNER = ("checkpoint", "tints", "heads")
"""Folders in that of a run."""
LONGEST = 233
"""Characters that a task's name may have in that of a file: file systems take 255 bytes in all."""
CHECKSUM = "crc32"
"""Where files keep the checksum of what they hold. Release 0.1.0 wrote none."""
FILES, ID = "files", "id"
"""What the checksum of JSON leaves out, as users may change it: hashes of other files; where a model is."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, then rename it into place.

    Args:
        path: of the file; folders are made.
        write: writes a file at the path it is given.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    temporary = _unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)  # as the user's umask wants it
        os.close(handle)
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Could not write `{path}`: {error}. Free space or choose another folder; "
            "nothing half-written was left there."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def possibly(write: Callable[..., object], *args: object) -> bool:
    """Write what a run can do without; where that is not possible, warn. Return whether it was written.

    Args:
        write: raises an OSError where there is no room.
        *args: what it takes.
    """
    try:
        write(*args)
    except OSError as error:
        warnings.warn(f"{error} The run is complete without it.", stacklevel=3)
        return False
    return True


def remove_unfinished(folder: Path, *, of_the_dead: bool = False) -> None:
    """Remove the files that were being written in a folder, or one within, when their process was killed.

    Args:
        folder: where to look.
        of_the_dead: whether others may be writing there now, so that only files of processes that are no
            more are removed.
    """
    for path in [*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"*/{UNFINISHED}*")]:
        pid = path.name.removeprefix(UNFINISHED).partition("-")[0]
        if not of_the_dead or not (pid.isdecimal() and alive(int(pid))):
            with suppress(OSError):
                path.unlink()


def alive(pid: int) -> bool:
    """Return whether a process of this machine runs.

    Args:
        pid: its id.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def file_name(task: str) -> str:
    """Return what files and folders of a task are called, whatever characters its name has.

    Args:
        task: its name. Of one that is too long for a file system the end is a hash.
    """
    name = quote(task, safe="")
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 17]}-{hashlib.sha256(task.encode()).hexdigest()[:16]}"


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(8)}{path.suffix[:16]}")


def path_of(what: str, given: str | Path) -> Path:
    """Return a path that a user gives, whole: `~` is their home, and the working folder may change.

    Args:
        what: how the error calls it.
        given: the path.

    Raises:
        ValueError: none, an empty one, or one that no file system takes.
    """
    known = isinstance(given, (str, Path)) and str(given).strip()
    path = Path(given).expanduser().absolute() if known else None
    if path is None or "\0" in str(path) or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError(f"`{what}` must be the path of a file or folder. Found {given!r}.")
    return path


def made(folder: Path) -> Path:
    """Make a folder where there is none, with those that it is in, and return it.

    Args:
        folder: which.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Could not make the folder `{folder}`: {error}. Choose another.") from error
    return folder


def require_writable(folder: Path) -> None:
    """Check, before any work, that the folder can be written.

    Args:
        folder: of the run.

    Raises:
        OSError: as `write_atomically`; or a file is there.
    """
    for place in (folder, *(folder / name for name in INNER)):
        require_no_file(place)
    probe = _unfinished(folder / "probe")
    write_text(probe, "x" * 4096)
    probe.unlink(missing_ok=True)


def require_no_file(folder: Path) -> None:
    """Refuse a file, or a link to nothing, where a folder will be written.

    Args:
        folder: that will be written.

    Raises:
        NotADirectoryError: it, or a folder that it is in, is one.
    """
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise NotADirectoryError(
                f"`{place}` is a link to `{os.readlink(place)}`, which is not there. Make that folder, or "
                "choose another."
            )
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"`{place}` is a file; expected a folder, or a name that is free.")


def require_no_folder(path: Path) -> None:
    """Refuse a folder where a file will be written.

    Args:
        path: of the file.

    Raises:
        IsADirectoryError: a folder is there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"`{path}` is a folder; expected a file, or a name that is free.")


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


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON as `write_json` does, with a checksum of itself, which `read_json` compares.

    Args:
        path: of the file.
        value: its content.
    """
    write_json(path, {**value, CHECKSUM: _checksum_of_json(value)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with a checksum of what it holds, which reading compares.

    Args:
        path: of the file.
        tensors: by name.
        metadata: for its header.
    """
    owned = _apart(tensors)
    header = {**metadata, CHECKSUM: _checksum(owned, metadata)}
    write_atomically(path, lambda temporary: save_file(owned, temporary, header))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a file takes them: on the CPU, none in the memory of another. Few are copied."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        apart[name] = here.clone() if place in seen else here
        seen.add(place)
    return apart


def read_tensors(path: Path, *, checked: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Args:
        path: of the file.
        checked: whether it must have a checksum.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short, is no safetensors file, or has changed since it was written.
    """
    with opened(path) as file:
        names = file.keys()  # not iterable itself
        tensors, metadata = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    written = metadata.pop(CHECKSUM, None)
    if (written is not None or checked) and written != _checksum(tensors, metadata):
        raise ValueError(f"`{path}` is damaged: its content is not what was written.")
    return tensors, metadata


def opened(path: Path) -> Any:
    """Return an open safetensors file, which is a context too.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short, or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`{path}` is {'a folder; expected a file' if path.is_dir() else 'missing'}."
        )
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(
            f"`{path}` is cut short or no safetensors file: {error}. Copy it again from where it comes."
        ) from error


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
        ValueError: it is cut short, no JSON, another kind of it, or has changed since it was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`{path}` is missing.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is cut short or no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` must hold a JSON object. Found {str(content)[:80]}.")
    written = content.pop(CHECKSUM, None)
    if written is not None and written != _checksum_of_json(content):
        raise ValueError(
            f"`{path}` has changed since it was written. Restore it; or, if you changed it yourself, take "
            f"`{CHECKSUM}` out of it."
        )
    return content


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the checksum of tensors and what stands beside them: quick, for checkpoints may be large."""
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _checksum_of_json(value: Mapping[str, Any]) -> str:
    # As it is read back: keys are strings, tuples lists.
    content = _without_ids(json.loads(json.dumps({**value, FILES: None})))
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(entry) for entry in value]
    if isinstance(value, dict):
        return {k: _without_ids(v) for k, v in value.items() if k != ID or isinstance(v, (dict, list))}
    return value


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
