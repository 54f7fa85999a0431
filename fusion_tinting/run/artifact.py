"""The artefact folder that a run leaves behind, readable without this package.

tinting.json              format version, settings, tasks in order, content hashes, versions, cost; and
                          the sha256 of every file of tensors beside it
coefficients.safetensors  merged tensor name -> (K,) float32, the effective λ
tints/<task>.safetensors  the tinted layer of that task
curves.csv                loss, agreement, share kept and mean λ by iteration and task
"""

import json
import resource
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch
from torch import Tensor, nn

from fusion_tinting.method.merging import load_merged
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.files import read_json, read_tensors, sha256, write_json, write_tensors, write_text
from fusion_tinting.run.history import History

if TYPE_CHECKING:
    from fusion_tinting.method.tinted_model import TintedModel

FORMAT_VERSION = 1
MANIFEST = "tinting.json"
COEFFICIENTS = "coefficients.safetensors"
NEEDED = {
    "tasks": list,
    "layer": str | None,
    **dict.fromkeys(("base", "experts", "heads", "settings", "samples", "data"), dict),
}
"""What a manifest must have, and the kind of each."""
PACKAGES = ("fusion-tinting", "torch", "transformers", "fusion-bench")


class Reordered(Mapping):
    """A mapping with its keys in another order; values are still loaded on access."""

    def __init__(self, items: Mapping, keys: list[str]):
        self._items, self._keys = items, keys

    def __getitem__(self, key):
        return self._items[key]

    def __iter__(self) -> Iterator:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def save(model: "TintedModel", run_dir: Path) -> None:
    """Write every file of `model`'s artefact; the manifest last, so that it vouches for the rest."""
    names = model.info.get("tensor_names") or {}
    (run_dir / MANIFEST).unlink(missing_ok=True)
    coefficients = {names.get(name, name): row for name, row in model.coefficients.items()}
    columns = {"format": "pt", "tasks": json.dumps(model.tasks)}
    write_tensors(run_dir / COEFFICIENTS, coefficients, columns)
    for task, tint in model.tints.items():
        tensors = {_tint_name(model, name, names): t for name, t in tint.state_dict().items()}
        write_tensors(tint_path(run_dir, task), tensors, {"format": "pt"})
    if model.history is not None:
        write_text(run_dir / "curves.csv", model.history.to_csv())
    written = [run_dir / COEFFICIENTS, *(tint_path(run_dir, task) for task in model.tints)]
    digests = {path.relative_to(run_dir).as_posix(): sha256(path) for path in written}
    write_json(run_dir / MANIFEST, manifest(model, names) | {"files": digests})


def manifest(model: "TintedModel", names: Mapping[str, str]) -> dict:
    """The content of `tinting.json`, but for `files`."""
    hashes, info = model.vectors.hashes, model.info
    ids = info.get("ids", {})
    return {
        "format_version": FORMAT_VERSION,
        "method": "model_tinting",
        "tasks": model.tasks,
        "layer": model.layer,
        "layer_choice": info.get("layer_choice"),
        "tinted_tensors": [names.get(name, name) for name in model.tinted_tensors],
        "settings": info.get("settings", {}),
        "split": info.get("split"),
        "samples": info.get("samples", {}),
        "data": info.get("data", {}),
        "heads": model.head_hashes,
        "base": {"id": ids.get(PRETRAINED), "sha256": hashes[PRETRAINED]},
        "experts": {t: {"id": ids.get(t), "sha256": hashes[t]} for t in model.tasks},
        "steps": 0 if model.history is None else len(model.history),
        "skipped_steps": 0 if model.history is None else model.history.skipped,
        "seconds": info.get("seconds"),
        "peak_memory_bytes": info.get("peak_memory_bytes"),
        "versions": installed_versions(),
    }


def read_manifest(run_dir: Path) -> dict:
    """`tinting.json`, if this version of the package can read it.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: a damaged manifest, or one of a newer format.
    """
    path = run_dir / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"`{run_dir}` holds no finished run: `{MANIFEST}` is missing. Expected an artefact folder "
            "(a run that was interrupted continues when it is started again with this `run_dir`)."
        )
    found = read_json(path)
    written = found.get("format_version")
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise ValueError(
            f"`{path}` has format version {written}; this version of fusion_tinting reads up to "
            f"{FORMAT_VERSION}. Upgrade fusion_tinting."
        )
    lacking = [k for k, kind in NEEDED.items() if k not in found or not isinstance(found[k], kind)]
    if not lacking:
        models = {"base": found["base"], **found["experts"]}
        lacking = [f"sha256 of {n}" for n, entry in models.items() if not _tells_content(entry)]
        lacking += [f"expert {task}" for task in found["tasks"] if task not in found["experts"]]
    if lacking:
        raise ValueError(
            f"`{path}` is no manifest of fusion_tinting: it lacks {lacking}, or they are wrong."
        )
    return found


def _tells_content(entry: object) -> bool:
    return isinstance(entry, dict) and "id" in entry and isinstance(entry.get("sha256"), str)


def check_files(run_dir: Path, found: dict) -> None:
    """Refuse an artefact whose λ or tints are not those that its manifest was written for.

    Raises:
        ValueError: naming the file.
    """
    for name, digest in found.get("files", {}).items():
        if sha256(run_dir / name) != digest:
            raise ValueError(
                f"`{run_dir / name}` has changed since the run was finished: its sha256 is not the one in "
                f"`{MANIFEST}`. Restore the file; or, if you changed it yourself, take `files` out of that."
            )


def identity(found: dict) -> dict:
    """What `checkpoint.identity` says of a run, read from its manifest."""
    models = {PRETRAINED: found["base"]["sha256"]}
    models |= {task: entry["sha256"] for task, entry in found["experts"].items()}
    settings = {**found["settings"], "split": found.get("split")}
    data = {part: found[part] for part in ("tasks", "heads", "samples", "data")}
    return {**data, "settings": settings, "models": models}


def restore(
    model: "TintedModel", run_dir: Path, found: dict, names: Mapping[str, str] | None = None
) -> "TintedModel":
    """Put the artefact's λ and tints into `model`, fresh from `TintedModel.untrained`; return it."""
    names = names or {}
    check_hashes(run_dir, found, model.vectors.hashes)
    check_heads(run_dir, found, model)
    path = run_dir / COEFFICIENTS
    stored, _ = read_tensors(path)
    wanted = [names.get(name, name) for name in model.vectors.slots]
    _check_names(path, wanted, stored)
    model.coefficients = {n: stored[w] for n, w in zip(model.vectors.slots, wanted, strict=True)}
    check_rows(path, model.coefficients, model.tasks)
    load_merged(model.encoder, model.vectors, torch.stack(list(model.coefficients.values())))
    for task, tint in model.tints.items():
        _restore_tint(model, tint, tint_path(run_dir, task), names)
    check_files(run_dir, found)
    curves = run_dir / "curves.csv"
    if curves.is_file():
        model.history = _read_curves(curves, model.tasks, found.get("steps"))
    kept = ("settings", "split", "samples", "data", "seconds", "layer_choice")
    model.info = {key: found.get(key) for key in kept}
    model.info["ids"] = {t: entry["id"] for t, entry in found["experts"].items()}
    model.info["ids"][PRETRAINED] = found["base"]["id"]
    model.info |= {"peak_memory_bytes": found.get("peak_memory_bytes"), "tensor_names": dict(names)}
    return model.requires_grad_(False)


def _read_curves(path: Path, tasks: list[str], steps: int) -> History:
    try:
        history = History.from_csv(path.read_text(), tasks)
    except (ValueError, RuntimeError):  # no text, no numbers, or not as many as there are tasks
        history = None
    if history is None or len(history) != steps:
        raise ValueError(
            f"`{path}` is cut short or damaged: expected {steps} iterations of {len(tasks)} tasks. "
            "Delete it to load the run without its curves."
        )
    return history


def check_rows(path: Path, rows: Mapping[str, Tensor], tasks: list[str]) -> None:
    """Refuse coefficients that are not one finite number for each task, naming the tensor."""
    for name, row in rows.items():
        if row.shape != (len(tasks),) or not torch.isfinite(row).all():
            raise ValueError(
                f"`{name}` in `{path}` must hold {len(tasks)} finite numbers, one for each task "
                f"of {tasks}. Found shape {tuple(row.shape)}: {row.flatten()[:8].tolist()}."
            )


def check_hashes(run_dir: Path, found: dict, hashes: Mapping[str, str]) -> None:
    """Refuse an artefact that was learned from other models."""
    for name, digest in identity(found)["models"].items():
        if hashes.get(name) != digest:
            who = "pre-trained model" if name == PRETRAINED else f"expert `{name}`"
            raise ValueError(
                f"`{run_dir}` was learned from another {who}: its tensors have sha256 "
                f"{digest[:12]}… there and {hashes.get(name, 'none')[:12]}… here. Pass the models it "
                "was learned from, or adapt again into another folder."
            )


def check_heads(run_dir: Path, found: dict, model: "TintedModel") -> None:
    """Refuse an artefact that was learned with other heads."""
    for task, digest in model.head_hashes.items():
        if found["heads"].get(task) != digest:
            raise ValueError(
                f"`{run_dir}` was learned with another head of `{task}`. Pass the one it was learned with."
            )


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Bytes: the GPU's peak where one is used, else this process's peak resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tint_path(run_dir: Path, task: str) -> Path:
    """The file of a task's tint, whatever characters the task's name has."""
    return run_dir / "tints" / f"{quote(task, safe='')}.safetensors"


def _restore_tint(model: "TintedModel", tint: nn.Module, path: Path, names: Mapping) -> None:
    stored, _ = read_tensors(path)
    wanted = {_tint_name(model, name, names): name for name in tint.state_dict()}
    _check_names(path, list(wanted), stored)
    for name, tensor in stored.items():
        target = tint.state_dict()[wanted[name]]
        if tensor.shape != target.shape:
            raise ValueError(
                f"`{name}` in `{path}` has shape {tuple(tensor.shape)}; the layer `{model.layer}` "
                f"of these models has {tuple(target.shape)}."
            )
    tint.load_state_dict({wanted[name]: tensor for name, tensor in stored.items()})


def _check_names(path: Path, wanted: list[str], stored: Mapping) -> None:
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted]
    if missing or extra:
        raise ValueError(
            f"`{path}` does not fit these models: tensors missing {missing[:3]}, not theirs {extra[:3]}."
        )


def _tint_name(model: "TintedModel", name: str, names: Mapping[str, str]) -> str:
    full = f"{model.layer}.{name}"
    return names.get(full, full)
