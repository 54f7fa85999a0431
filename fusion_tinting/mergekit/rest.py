"""What an expert is beside its weights, as it was when a run was learned: its variant is read with that."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from fusion_tinting.errors import abbreviate
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.run.files import read_json, write_record

SOURCES = "sources.json"
"""Task -> file -> hash, beside the artifact of a run of `mergekit-tint learn`."""
READ = (".json", ".txt", ".model", ".py")
"""Endings of configurations, tokenizers and code."""
NAMES = ("id2label", "label2id", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""What of a configuration changes no output."""


def remember(run_dir: Path, experts: Mapping[str, str]) -> None:
    """Write down what is beside the weights of a run's experts.

    Args:
        run_dir: the run's folder.
        experts: task -> folder, or id on the hub.
    """
    found = {task: _hashes(Checkpoint.open(model).folder) for task, model in experts.items()}
    write_record(run_dir / SOURCES, {"experts": found})


def require_unchanged(run_dir: Path, task: str, folder: Path) -> None:
    """Refuse an expert that computes otherwise, or reads otherwise, than when the run was learned.

    Args:
        run_dir: the run's folder; of earlier releases it knows nothing of this.
        task: the expert's.
        folder: where the expert is.

    Raises:
        ValueError: naming the files.
    """
    path = run_dir / SOURCES
    if not path.is_file():
        return
    experts = read_json(path).get("experts")
    was = experts.get(task) if isinstance(experts, dict) else None
    if not isinstance(was, dict):
        raise ValueError(f"`{path}` does not say what the expert `{task}` was. Restore it.")
    now = _hashes(folder)
    if changed := [name for name in was if was[name] != now.get(name)]:
        raise ValueError(
            f"{abbreviate(changed)} of the expert `{task}`, in `{folder}`, changed since the run was "
            "learned, so that its variant may not answer as it did. Restore them, or learn anew; or delete "
            f"`{path}`, if you know that nothing that is computed depends on them."
        )


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix in READ and path.is_file())
    return {path.name: _hash(path) for path in files if not path.name.endswith(".index.json")}


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "config.json":
        settings = {key: value for key, value in json.loads(content).items() if key not in NAMES}
        content = json.dumps(settings, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
