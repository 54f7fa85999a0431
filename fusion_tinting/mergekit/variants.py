"""`mergekit-tint variants RUN OUT`: a loadable checkpoint for every task around one shared model.

    OUT/shared/model-1.safetensors       θ(λ), every merged tensor but the tinted layer's
    OUT/<task>/model-shared-1.safetensors  a link to it (a copy where links are not possible)
    OUT/<task>/model-task.safetensors    the tint, and what is the expert's own: its head
    OUT/<task>/config.json, tokenizer files   the expert's

Everything goes by the names of the experts' checkpoints, whatever the architecture, one expert's tensor at
a time.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import click
from torch import Tensor

from fusion_tinting.artifact import MANIFEST, read_manifest
from fusion_tinting.errors import unknown
from fusion_tinting.files import read_tensors, write_json, write_tensors
from fusion_tinting.mergekit.checkpoints import INDEX, Checkpoint, require_same
from fusion_tinting.mergekit.cli import FOLDER
from fusion_tinting.mergekit.method import CoefficientFile
from fusion_tinting.mergekit.recipes import require_empty

SHARD_BYTES = 2 << 30
COPIED = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configuration and tokenizer files, taken from the expert."""


@click.command("variants")
@click.argument("run_dir", type=FOLDER, metavar="RUN")
@click.argument("out", type=FOLDER)
@click.option("--task", "tasks", multiple=True, help="This one only; may be repeated.")
@click.option("--force", is_flag=True, help="Write into a folder that is not empty.")
def command(run_dir: Path, out: Path, tasks: tuple[str, ...], force: bool) -> None:
    """Write OUT/TASK, a complete checkpoint for `from_pretrained`, for every task of a run."""
    for folder in write(run_dir, out, tasks, force):
        click.echo(folder)


def write(run_dir: Path, out: Path, tasks: tuple[str, ...] = (), force: bool = False) -> list[Path]:
    """Write the shared model once and a variant for every task (or `tasks`); their folders.

    Raises:
        FileNotFoundError: no finished run, or one of its models is not there.
        ValueError: an unknown task, `out` not empty, or models that the run was not learned from.
        OSError: no room.
    """
    manifest = read_manifest(run_dir)
    for task in tasks:
        if task not in manifest["tasks"]:
            raise unknown("task", task, manifest["tasks"])
    require_empty(out, force)
    base = Checkpoint.open(_id(manifest["base"], run_dir))
    experts = {t: Checkpoint.open(_id(manifest["experts"][t], run_dir)) for t in manifest["tasks"]}
    coefficients = CoefficientFile(run_dir / "coefficients.safetensors")
    tinted = set(manifest["tinted_tensors"])
    names = [name for name in coefficients.rows if name not in tinted]
    _check(base, experts, names)
    shared = _write_shards(out / "shared", names, lambda name: merged(base, experts, coefficients, name))
    chosen = tasks or manifest["tasks"]
    return [_variant(run_dir, out, task, experts[task], shared) for task in chosen]


def merged(base: Checkpoint, experts: Mapping[str, Checkpoint], file: CoefficientFile, name: str) -> Tensor:
    """θ₀ + Σ_k λ_k (θ_k − θ₀) of one tensor, one expert at a time, in float32."""
    start = base.tensor(_in_base(base, name))
    total = start.float().clone()
    for task, expert in experts.items():
        total.add_(expert.tensor(name).float().sub(start.float()), alpha=file.value(name, task))
    return total.to(start.dtype)


def _variant(run_dir: Path, out: Path, task: str, expert: Checkpoint, shared: Mapping[str, Path]) -> Path:
    folder = out / task
    folder.mkdir(parents=True, exist_ok=True)
    path = run_dir / "tints" / f"{task}.safetensors"
    tint = read_tensors(path)[0] if path.is_file() else {}
    rest = [name for name in expert.files if name not in shared and name not in tint]
    own = {**{name: expert.tensor(name) for name in rest}, **tint}
    files = {name: f"model-shared-{shared[name].name.removeprefix('model-')}" for name in shared}
    for name, source in shared.items():
        _link(source, folder / files[name])
    write_tensors(folder / "model-task.safetensors", own, {"format": "pt"})
    size = sum(t.nbytes for t in own.values()) + sum(p.stat().st_size for p in set(shared.values()))
    files |= dict.fromkeys(own, "model-task.safetensors")
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": files})
    for pattern in COPIED:
        for found in expert.folder.glob(pattern):
            if found.name != INDEX:
                shutil.copy(found, folder)
    if any(name not in expert.files for name in own):
        _untie(folder / "config.json")
    written = Checkpoint.open(str(folder)).shapes()
    require_same(written, expert.shapes(), f"`{folder}` is not complete", f"See `{run_dir / MANIFEST}`.")
    return folder


def _write_shards(folder: Path, names: list[str], tensor: Callable[[str], Tensor]) -> dict[str, Path]:
    """Write tensors into files of at most `SHARD_BYTES`; tensor name -> its file."""
    files, held, size = {}, {}, 0

    def flush() -> None:
        if held:
            path = folder / f"model-{len(set(files.values())) + 1}.safetensors"
            write_tensors(path, held, {"format": "pt"})
            files.update(dict.fromkeys(held, path))
            held.clear()

    for name in names:
        found = tensor(name)
        if size + found.nbytes > SHARD_BYTES:
            flush()
            size = 0
        held[name] = found
        size += found.nbytes
    flush()
    return files


def _check(base: Checkpoint, experts: Mapping[str, Checkpoint], names: list[str]) -> None:
    there = base.shapes()
    shapes = {name: there[_in_base(base, name)] for name in names}
    for task, expert in experts.items():
        advice = "The run was learned from other models: give it those, or learn anew."
        require_same(expert.shapes(), shapes, f"The expert `{task}`, `{expert.folder}`", advice)


def _in_base(base: Checkpoint, name: str) -> str:
    """A tensor's name in the base, which may be the bare model, without the prefix that others give it."""
    short = name.partition(".")[2]
    if name not in base.files and short not in base.files:
        raise ValueError(
            f"The base `{base.folder}` has no tensor `{name}`. The run was learned from another one."
        )
    return name if name in base.files else short


def _id(entry: Mapping, run_dir: Path) -> str:
    if not entry.get("id"):
        raise ValueError(
            f"`{run_dir / MANIFEST}` does not say where its models are; was it made in Python?"
        )
    return entry["id"]


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.symlink(os.path.relpath(source, target.parent), target)
    except OSError:
        shutil.copy(source, target)


def _untie(config: Path) -> None:
    found = json.loads(config.read_text())
    write_json(config, {**found, "tie_word_embeddings": False})
