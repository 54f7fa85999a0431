"""CLIP vision towers that a configuration names, made ready for `tint`."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPProcessor

from fusion_tinting.families import clip as family
from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.config import Config
from fusion_tinting.mergekit.images import Images, prompts_of
from fusion_tinting.mergekit.recipes import FILES
from fusion_tinting.mergekit.rows import Inputs, Rows, reachable
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.files import write_json, write_tensors

HEADS = "heads"
PROJECTION = "visual_projection.weight"
LOGITS = f"weight · z + bias, where z = normalize({PROJECTION} · pooler_output of the CLIPVisionModel)"
SAME = ("hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")
"""What two towers must agree in beside the shapes of their tensors, which alone do not tell all of it."""


class ClipTowers:
    """CLIP vision towers: everything else of CLIP is the base's. See `learn.FAMILY`.

    A task's head is its zero-shot classifier, as in FusionBench: class embeddings of the base's text tower,
    times its logit scale.

    Attributes:
        classes: task -> the names of its classes.
    """

    reads: ClassVar[tuple[str, ...]] = ("image", "classes", "template")
    defaults: ClassVar[dict] = {}
    recipes = FILES  # `yaml` drops tensors of CLIP
    head = "head"

    def __init__(self, config: Config):
        by_task = config.by_task
        self._rows = {task: Rows(expert) for task, expert in by_task.items()}
        prompts = {task: prompts_of(rows) for task, rows in self._rows.items()}
        self.classes = {task: names for task, (names, _) in prompts.items()}
        base = reachable(family.load, config.base_model)
        for expert in config.experts:
            _check_architecture(expert.model, base)
            _check_rest(expert.model, base)
        self._processor = reachable(CLIPProcessor.from_pretrained, config.base_model)
        self.pretrained = family.CLIPImageEncoder(base.vision_model, base.visual_projection)
        self.names = family.names_on_disk(self.pretrained, base)
        scale = base.logit_scale.exp()
        self.heads = {
            task: family.folded_head(family.zero_shot_weights(base, self._processor, *both), scale)
            for task, both in prompts.items()
        }
        self.experts = LoadedExperts(
            list(by_task),
            lambda task: family.CLIPImageEncoder(
                family.load_tower(by_task[task].model), base.visual_projection
            ),
        )

    def inputs(self, task: str) -> Inputs:
        """A task's images as pixels."""
        rows, names = self._rows[task], self.classes[task]
        labels = rows.labels(len(names), {name: place for place, name in enumerate(names)})
        return Inputs(Images(rows, self._processor).unlabeled(), labels)

    def finish(self, run_dir: Path) -> None:
        """Write `heads/<task>.safetensors` (weight, bias and the visual projection, all as they were before
        the adaptation) and `heads/<task>.json`: the class names, which no checkpoint holds.
        """
        for task, head in self.heads.items():
            write_head(
                head_path(run_dir, task),
                {**head.state_dict(), PROJECTION: self.pretrained.visual_projection.weight},
                {"task": task, "classes": self.classes[task], "logits": LOGITS},
            )


def head_path(run_dir: Path, task: str) -> Path:
    """The two files of a task's head in a run, without their endings."""
    return run_dir / HEADS / quote(task, safe="")


def write_head(stem: Path, tensors: Mapping[str, Tensor], about: Mapping) -> None:
    """Write `stem`.safetensors, and beside it `stem`.json."""
    write_tensors(stem.with_name(f"{stem.name}.safetensors"), tensors, {"format": "pt"})
    write_json(stem.with_name(f"{stem.name}.json"), dict(about))


def _check_architecture(expert: str, base: CLIPModel) -> None:
    config = reachable(AutoConfig.from_pretrained, expert)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"The expert `{expert}` is of the architecture `{config.model_type}`. Expected a "
            "CLIPVisionModel or a CLIPModel."
        )
    theirs, ours = getattr(config, "vision_config", config), base.config.vision_config
    for key in SAME:
        if getattr(theirs, key) != getattr(ours, key):
            raise ValueError(
                f"The expert `{expert}` has `{key}` {getattr(theirs, key)}; the base has "
                f"{getattr(ours, key)}. Only towers of one architecture can be merged."
            )


def _check_rest(expert: str, base: CLIPModel) -> None:
    """Refuse an expert that was changed outside its vision tower: that change would be lost."""
    checkpoint, ours = Checkpoint.open(expert), base.state_dict()
    for name in checkpoint.files:
        inside = name.startswith("vision_model.") or f"vision_model.{name}" in ours
        if inside or name.endswith("position_ids"):  # a buffer that older checkpoints hold
            continue
        tensor = checkpoint.tensor(name)
        if name not in ours or not torch.equal(ours[name].to(tensor.dtype), tensor):
            raise ValueError(
                f"The expert `{expert}` has another `{name}` than the base. Only vision towers are merged; "
                "text tower and projections are the base's. To go without that change, save its vision "
                "tower alone: `CLIPModel.from_pretrained(…).vision_model.save_pretrained(…)`."
            )
