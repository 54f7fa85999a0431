"""What `mergekit-tint variants` writes of CLIP: a CLIPVisionModel for every task, and its head beside it.

    OUT/<task>/                   a checkpoint of the vision tower, as for other families; and
    OUT/<task>/head.safetensors   weight (classes, d), bias (classes,), visual_projection.weight (d, width)
    OUT/<task>/head.json          the names of the classes, and how the logits are computed:

        z = normalize(visual_projection.weight · CLIPVisionModel(pixel_values).pooler_output)
        logits = weight · z + bias

On disk tensors have the names that they have in the base, with the prefix `vision_model.`; experts may be
without it, or hold more than a tower.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModel
from transformers.utils import cached_file

from fusion_tinting.families.clip import HEADS, PROJECTION, Clip, head_path, write_head
from fusion_tinting.families.loading import reachable
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.folders import now_at
from fusion_tinting.mergekit.merged import MergedRun
from fusion_tinting.mergekit.names import ModelNames
from fusion_tinting.mergekit.run_files import tint_file
from fusion_tinting.run.artifact import tint_path
from fusion_tinting.run.files import read_json, read_tensors, write_text
from fusion_tinting.run.manifest import Manifest

PREPROCESSOR = "preprocessor_config.json"


class TowerNames(ModelNames):
    """The names of a CLIP's vision tower, whatever checkpoint it is in.

    Args:
        folder: of the whole CLIP.
    """

    def __init__(self, folder: Path):
        self.config = AutoConfig.from_pretrained(folder).vision_config
        with torch.device("meta"):
            self._model = CLIPVisionModel(self.config)
        self.backbone = [name for name, _ in self._model.named_parameters()]
        self.encoder = {name: f"{Clip.part}{name}" for name in self.backbone}
        self.tied: dict[str, str] = {}

    def of(self, stored: Iterable[str]) -> dict[str, str]:
        """Return name in the tower -> name among `stored`, of which the rest is left out."""
        names = {name.removeprefix(Clip.part): name for name in stored}
        return {name: names[name] for name in self.backbone if name in names}


class TowerRun(MergedRun):
    """A finished run of vision towers; see `MergedRun`.

    Args:
        run_dir: the run's folder.
        manifest: the run's.
        moves: see `MergedRun`.
    """

    def __init__(self, run_dir: Path, manifest: Manifest, moves: Mapping[str, str]):
        super().__init__(run_dir, manifest, moves)
        self._run_dir = run_dir
        self._preprocessor = reachable(
            lambda name: cached_file(name, PREPROCESSOR), now_at(manifest.base.id, moves)
        )
        self._heads = {task: self._head(task) for task in manifest.tasks}

    def on_disk(self, task: str, name: str) -> str:
        """Return what a tensor is called on disk, as in the base."""
        return self._base.stored[name]

    def write_rest(self, task: str, folder: Path) -> None:
        """Write configuration, preprocessor and head of a task."""
        config = self._names.config
        config.architectures = [CLIPVisionModel.__name__]
        write_text(folder / "config.json", config.to_json_string())
        shutil.copyfile(self._preprocessor, folder / PREPROCESSOR)
        write_head(folder / "head", *self._heads[task])

    def _check_configurations(self) -> None:
        """Leave what `require_tower` has seen to: experts may be towers alone, or whole CLIPs."""

    @staticmethod
    def _names_of(base: Checkpoint, expert: Checkpoint) -> ModelNames:
        return TowerNames(base.folder)

    def _head(self, task: str) -> tuple[dict[str, Tensor], dict]:
        """Return the tensors of a task's head, with its tint, and what is known of it."""
        stem, tint = head_path(self._run_dir, task), tint_path(self._run_dir, task)
        head, _ = read_tensors(stem.with_name(f"{stem.name}.safetensors"))
        for name, tensor in (tint_file(str(tint)) if tint.is_file() else {}).items():
            if name in (PROJECTION, "head.weight", "head.bias"):
                head[name.removeprefix("head.")] = tensor
        return head, read_json(stem.with_name(f"{stem.name}.json"))


def run_of(run_dir: Path, moves: Mapping[str, str]) -> MergedRun:
    """Return the finished run in a folder, its models checked.

    Args:
        run_dir: the run's folder.
        moves: old path -> new path, of models that are elsewhere now.

    Raises:
        FileNotFoundError, ValueError: see `MergedRun`.
    """
    manifest = Manifest.read(run_dir)
    towers = (run_dir / HEADS).is_dir()  # of CLIP: the heads are no part of the experts' checkpoints
    run = (TowerRun if towers else MergedRun)(run_dir, manifest, moves)
    manifest.check_files(run_dir)
    return run
