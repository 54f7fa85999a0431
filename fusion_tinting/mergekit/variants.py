"""`mergekit-tint variants RUN OUT`: a loadable checkpoint for every task around one shared model.

    OUT/shared/model-1.safetensors, …      θ(λ), every merged tensor but the tinted layer's
    OUT/<task>/model-shared-1.safetensors  a link to it (a copy where links are not possible)
    OUT/<task>/model-task.safetensors      the tint, and what is the expert's alone: its head
    OUT/<task>/config.json, tokenizer, …   the expert's

The index of a folder, without which nothing loads it, is written last. A variant can be moved with what it
links to: `cp -rL OUT/<task> elsewhere`.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import click
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from fusion_tinting.errors import unknown
from fusion_tinting.mergekit import rest
from fusion_tinting.mergekit.checkpoints import INDEX, WEIGHTS, Checkpoint, require_same
from fusion_tinting.mergekit.clip_variants import run_of
from fusion_tinting.mergekit.folders import moves_of, require_empty, require_folder, require_other
from fusion_tinting.mergekit.merged import MergedRun
from fusion_tinting.run.artifact import COEFFICIENTS
from fusion_tinting.run.files import file_name, read_json, write_atomically, write_json
from fusion_tinting.run.lock import held
from fusion_tinting.run.manifest import MANIFEST, Manifest

SHARED = "shared"
OWN = "model-task.safetensors"
SHARD_BYTES = 1 << 29
NOT_COPIED = ("README.md", INDEX)
FOLDERS = ("additional_chat_templates", "[0-9]_*")
"""Those of a tokenizer, and of the modules of sentence-transformers."""


def command(run_dir: Path, out: Path, tasks: tuple[str, ...], force: bool, moved: tuple[str, ...]) -> None:
    """Write variants, and print their folders; see `write`.

    Args:
        run_dir: the run's folder.
        out: the folder of all.
        tasks: those whose variants are written; none stands for all.
        force: whether `out` may hold something.
        moved: `OLD=NEW` of models that are elsewhere now.
    """
    start = time.perf_counter()
    for folder in write(run_dir, out, tasks, force, moves_of(moved)):
        click.echo(folder)
    click.echo(f"Written in {time.perf_counter() - start:.1f} s.", err=True)


def write(
    run_dir: Path,
    out: Path,
    tasks: tuple[str, ...] = (),
    force: bool = False,
    moves: Mapping[str, str] = MappingProxyType({}),
) -> list[Path]:
    """Write the shared model once and a variant for every task (or `tasks`); their folders.

    Args:
        run_dir: the run's folder.
        out: the folder of all.
        tasks: those whose variants are written; none stands for all.
        force: whether `out` may hold something.
        moves: old path -> new path, of models that are elsewhere now.

    Raises:
        FileNotFoundError: no finished run, or one of its models is not there.
        ValueError: an unknown task, `out` not empty, or models that the run was not learned from.
        OSError: no room, or another command writes there; nothing is left that could be loaded by mistake.
    """
    manifest = Manifest.read(run_dir)
    for task in tasks:
        if task not in manifest.tasks:
            raise unknown("task", task, manifest.tasks)
    chosen = list(dict.fromkeys(tasks)) or manifest.tasks
    require_folder(out)
    with held(out):
        require_empty(out, force)
        click.echo("Checking the models …", err=True)
        run = run_of(run_dir, moves)
        for folder in (out / SHARED, *(out / folder_of(task) for task in chosen)):
            require_other(folder, run.sources)
            require_folder(folder)
        for task in chosen:
            rest.require_unchanged(run_dir, task, run.experts[task].checkpoint.folder)
        shared = _shared(run, out / SHARED, _digest(run_dir))
        bar = tqdm(chosen, desc="Writing", unit="task", disable=None, dynamic_ncols=True)
        return [_variant(run, task, out / folder_of(task), shared) for task in bar]


def folder_of(task: str) -> str:
    """Return the folder of a task, whatever characters its name has."""
    name = file_name(task)
    return f"%{ord(name[0]):02X}{name[1:]}" if name in (".", "..", SHARED) else name


def link(source: Path, target: Path) -> None:
    """Make a relative symbolic link, or a copy where the file system has none.

    Args:
        source: the file.
        target: where the link will be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(source, target.parent), target)
    except OSError:
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def _shared(run: MergedRun, folder: Path, digest: str) -> Checkpoint:
    """Write the shared model; one of the same run that is whole is kept, with the variants around it."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if index.get("metadata", {}).get("run") == digest:
            return Checkpoint(folder, index["weight_map"])
    _remove_models(folder)
    for other in folder.parent.glob("*/model-shared-*"):  # what it was linked to is no more
        (other.parent / INDEX).unlink(missing_ok=True)
    files, size = _write_shards(run, folder)
    write_json(folder / INDEX, {"metadata": {"run": digest, "total_size": size}, "weight_map": files})
    return Checkpoint(folder, files)


def _write_shards(run: MergedRun, folder: Path) -> tuple[dict[str, str], int]:
    """Merge into files of `SHARD_BYTES` at most; tensor name on disk -> its file, and bytes in all."""
    files, held, size = {}, {}, 0
    for name in tqdm(run.shared, desc="Merging", unit="tensor", disable=None, dynamic_ncols=True):
        tensor = run.merged(name)
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD_BYTES:
            files |= _write_shard(folder, held, len(set(files.values())) + 1)
            held.clear()
        held[run.stored(name)] = tensor
        size += tensor.nbytes
    return files | _write_shard(folder, held, len(set(files.values())) + 1), size


def _write_shard(folder: Path, tensors: Mapping[str, Tensor], number: int) -> dict[str, str]:
    _save(folder / f"model-{number}.safetensors", tensors)
    return dict.fromkeys(tensors, f"model-{number}.safetensors")


def _variant(run: MergedRun, task: str, folder: Path, shared: Checkpoint) -> Path:
    expert = run.experts[task].checkpoint.folder
    _remove_models(folder)
    files = {name: file.replace("model-", "model-shared-") for name, file in shared.files.items()}
    for name, file in shared.files.items():
        link(shared.folder / file, folder / files[name])
    own = run.own(task)
    _save(folder / OWN, own)
    files |= dict.fromkeys(own, OWN)
    _copy_rest(expert, folder)
    run.write_rest(task, folder)
    written = run.named(Checkpoint(folder, files).shapes())
    require_same(written, run.wanted(task), f"`{folder}` is not whole", f"See `{expert}`.")
    size = sum((shared.folder / f).stat().st_size for f in set(shared.files.values()))
    size += sum(tensor.nbytes for tensor in own.values())
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    return folder


def _remove_models(folder: Path) -> None:
    """Remove what an earlier command left, which would be loaded in place of what is written now."""
    for path in [folder / INDEX, *folder.glob("*.safetensors")]:
        path.unlink(missing_ok=True)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_atomically(path, lambda temporary: save_file(dict(tensors), temporary, {"format": "pt"}))


def _copy_rest(expert: Path, folder: Path) -> None:
    """Copy all of an expert but its weights: configuration, tokenizer, generation settings, code."""
    for path in expert.iterdir():
        weights = path.suffix in WEIGHTS or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in NOT_COPIED and path.name[0] != ".":
            shutil.copyfile(path, folder / path.name)
    for path in (path for pattern in FOLDERS for path in expert.glob(pattern) if path.is_dir()):
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)


def _digest(run_dir: Path) -> str:
    """Names what a run's shared model is made of: models by content, coefficients, tinted layer."""
    files = (run_dir / MANIFEST, run_dir / COEFFICIENTS)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
