"""What `mergekit-tint variants` writes of CLIP: a CLIPVisionModel for every task, and its head beside it.

    OUT/<task>/                   a checkpoint of the vision tower, as for other families; and
    OUT/<task>/head.safetensors   weight (classes, d), bias (classes,), visual_projection.weight (d, width)
    OUT/<task>/head.json          the names of the classes, and how the logits are computed:

        z = normalize(visual_projection.weight · CLIPVisionModel(pixel_values).pooler_output)
        logits = weight · z + bias

Tensors go by their names in the base, which have the prefix `vision_model.`; an expert's may be without.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import CLIPModel, CLIPVisionModel
from transformers.utils import cached_file

from fusion_tinting.families import clip as family
from fusion_tinting.families.clip import PROJECTION, head_path, write_head
from fusion_tinting.families.loading import reachable
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.merged import Named, Shapes
from fusion_tinting.mergekit.run_files import CoefficientFile, tint_file
from fusion_tinting.method.task_vectors import content_hash
from fusion_tinting.run.artifact import COEFFICIENTS, tint_path
from fusion_tinting.run.files import read_json, read_tensors, write_text
from fusion_tinting.run.manifest import Manifest, Source

PREPROCESSOR = "preprocessor_config.json"


class TowerRun:
    """A finished run of vision towers; as `MergedRun`, but that all of the tower is in memory.

    Raises:
        FileNotFoundError: a file of the run, or one of its models, is not there.
        ValueError: models that the run was not learned from, junk or NaN in a file.
    """

    def __init__(self, run_dir: Path, manifest: Manifest):
        self._base = reachable(family.load, manifest.base.id)
        self._preprocessor = reachable(lambda name: cached_file(name, PREPROCESSOR), manifest.base.id)
        self._heads = {task: _head(run_dir, task) for task in manifest.tasks}
        tinted = manifest.tinted_tensors
        self._blocks = {task: _tint(run_dir, task, tinted) for task in manifest.tasks}
        self._tower = _merged(self._base, manifest, CoefficientFile(run_dir / COEFFICIENTS))
        self.shared = [name for name in self._tower if name not in tinted]
        self.experts = {t: Named(Checkpoint.open(e.id), {}) for t, e in manifest.experts.items()}
        self.sources = [Path(manifest.base.id), *(e.checkpoint.folder for e in self.experts.values())]

    def merged(self, name: str) -> Tensor:
        """θ(λ) of one tensor."""
        return self._tower[name]

    def stored(self, name: str) -> str:
        """Return what a tensor is called on disk."""
        return name

    def own(self, task: str) -> dict[str, Tensor]:
        """Return the tinted block of a task, where one is."""
        return self._blocks[task]

    def wanted(self, task: str) -> Shapes:
        """Return name -> shape of every tensor of the tower."""
        return {name: tuple(tensor.shape) for name, tensor in self._tower.items()}

    def named(self, stored: Shapes) -> Shapes:
        """Shapes by names on disk -> by the names that `wanted` has."""
        return stored

    def write_rest(self, task: str, folder: Path) -> None:
        """Configuration, preprocessor and head of a task."""
        config = self._base.config.vision_config
        config.architectures = [CLIPVisionModel.__name__]
        write_text(folder / "config.json", config.to_json_string())
        shutil.copyfile(self._preprocessor, folder / PREPROCESSOR)
        write_head(folder / "head", *self._heads[task])


def _merged(base: CLIPModel, manifest: Manifest, file: CoefficientFile) -> dict[str, Tensor]:
    """θ₀ + Σ_k λ_k (θ_k − θ₀) of every tensor, one expert at a time, in float32."""
    names = family.names_on_disk(family.CLIPImageEncoder(base.vision_model, base.visual_projection), base)
    start = _parameters(base.vision_model, names, "the base", manifest.base)
    total = {name: tensor.clone() for name, tensor in start.items()}
    for task, entry in manifest.experts.items():
        tower = reachable(family.load_tower, entry.id)
        expert = _parameters(tower, names, f"the expert `{task}`", entry)
        for name, tensor in expert.items():
            total[name].add_(tensor - start[name], alpha=file.value(name, task))
    return total


def _parameters(tower: CLIPVisionModel, names: Mapping[str, str], who: str, entry: Source) -> dict:
    found = {f"vision_model.{name}": tensor.detach() for name, tensor in tower.named_parameters()}
    if content_hash(found) != entry.sha256:
        raise ValueError(
            f"`{entry.id}`, {who}, is not what the run was learned from: its tensors have changed. "
            "Learn anew, into another folder."
        )
    return {names[name]: tensor for name, tensor in found.items()}


def _head(run_dir: Path, task: str) -> tuple[dict[str, Tensor], dict]:
    """Return the tensors of a task's head, with its tint where it is tinted, and what is known of it."""
    stem = head_path(run_dir, task)
    head, _ = read_tensors(stem.with_name(f"{stem.name}.safetensors"))
    tint = _tint(run_dir, task, [PROJECTION, "head.weight", "head.bias"])
    head |= {name.removeprefix("head."): tensor for name, tensor in tint.items()}
    return head, read_json(stem.with_name(f"{stem.name}.json"))


def _tint(run_dir: Path, task: str, names: list[str]) -> dict[str, Tensor]:
    """Those tensors of a task's tint that are called so; none in a run without tint."""
    path = tint_path(run_dir, task)
    tint = tint_file(str(path)) if path.is_file() else {}
    return {name: tensor for name, tensor in tint.items() if name in names}
