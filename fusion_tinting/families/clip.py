"""CLIP image classifiers with zero-shot heads: features, folded heads, names on disk."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, CLIPModel, CLIPProcessor, CLIPVisionModel
from transformers.core_model_loading import revert_weight_conversion

from fusion_tinting.families import images
from fusion_tinting.families.class_token import unobserved
from fusion_tinting.families.family import BY_FILE, Family
from fusion_tinting.families.loading import load_partly, reachable, require_complete
from fusion_tinting.families.rows import Rows
from fusion_tinting.families.stored import in_files
from fusion_tinting.method.content import content_hash
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.cache import recall, remember
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.files import file_name, write_record, write_tensors
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

HEADS = "heads"
PROJECTION = "visual_projection.weight"
LOGITS = f"weight · z + bias, where z = normalize({PROJECTION} · pooler_output of the CLIPVisionModel)"
SAME = ("hidden_act", "num_attention_heads", "layer_norm_eps", "image_size", "patch_size")
"""What two towers must agree in beside the shapes of their tensors, which alone do not tell all of it."""

WHOLE = {"clip": CLIPModel}
TOWERS = {"clip_vision_model": CLIPVisionModel, **WHOLE}
"""Architecture -> the class of transformers; the second of whole models alone."""
CLIP = CLIPVisionModel.__module__
"""Where transformers keeps its classes of CLIP."""


class CLIPImageEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> L2-normalized image embeddings (B, d).

    The visual projection belongs to the pre-trained model: the experts share the object itself, so it
    has no task vector, but it can be tinted (`layer=visual_projection`).
    """

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module):
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return normalized embeddings."""
        if _is_as_made(self.vision_model):
            pooled = class_token(self.vision_model, pixel_values)
        else:
            pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        return nn.functional.normalize(self.visual_projection(pooled), dim=-1)


def class_token(vision_model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return the `pooler_output` of CLIP's tower, (B, d), without what nobody reads of its last block."""
    tower = _tower(vision_model)
    states = tower.pre_layrnorm(tower.embeddings(pixel_values))
    *blocks, last = tower.encoder.layers
    for block in blocks:
        states = block(states, attention_mask=None)
    return tower.post_layernorm(_first_token(last, states)[:, 0])


def _first_token(block: nn.Module, states: Tensor) -> Tensor:
    """Return the first token, (B, 1, d), that a `CLIPEncoderLayer` makes of `states`, (B, N, d)."""
    attention, normed = block.self_attn, block.layer_norm1(states)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    queries = heads(attention.q_proj(normed[:, :1]))
    keys, values = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
    attended = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    first = states[:, :1] + attention.out_proj(attended.transpose(1, 2).flatten(2))
    return first + block.mlp(block.layer_norm2(first))


def _tower(vision_model: nn.Module) -> nn.Module:
    return getattr(vision_model, "vision_model", vision_model)  # one level more before transformers 5.6


def _is_as_made(vision_model: nn.Module) -> bool:
    """Return whether a tower, and what may be around it, is transformers' own of CLIP, in evaluation."""
    tower = _tower(vision_model)
    if type(tower).__module__ != CLIP:
        return False
    last = tower.encoder.layers[-1]
    own = vision_model, tower, tower.encoder, last, last.self_attn, last.mlp
    return all(type(module).__module__ == CLIP for module in own) and unobserved(*own, *last.modules())


class TintedCLIP(TintedModel):
    """A tinted model whose encoder is a `CLIPImageEncoder`."""

    @property
    def merged(self) -> nn.Module:
        """The shared vision tower θ(λ), a `transformers.CLIPVisionModel`."""
        return self.as_given.vision_model

    def save_pretrained(self, path: str | Path, **kwargs: Any) -> None:
        """Save the shared vision tower as `CLIPVisionModel` reads it, and the artifact beside it.

        Args:
            path: a folder.
            **kwargs: as the model's own `save_pretrained`.
        """
        self.merged.save_pretrained(path, **kwargs)
        self.save(path)


class Clip(Family):
    """Vision towers are merged; everything else of CLIP is the base's.

    A task's head is its zero-shot classifier, as in FusionBench: class embeddings of the base's text tower,
    times its logit scale.
    """

    keys: ClassVar[tuple[str, ...]] = ("image", "classes", "template", "label")
    recipes = BY_FILE  # `yaml` drops tensors of CLIP
    model_class: ClassVar[type[TintedModel]] = TintedCLIP
    part: ClassVar[str | None] = "vision_model."

    @cached_property
    def processor(self) -> Any:
        """The host's, or the base's."""
        given = self.models.reader
        return reachable(CLIPProcessor.from_pretrained, self.models.base) if given is None else given

    def check(self) -> None:
        """Refuse experts that are no vision tower of the base's architecture, or read images otherwise."""
        if self.models.load is None:
            base = reachable(AutoConfig.from_pretrained, self.models.base)
            _require_kind(self.models.base, base.model_type, WHOLE)
            for path in self.models.experts.values():
                require_tower(path, base.vision_config)
            images.require_read_alike(self.processor, self.models.experts)

    def load(self) -> None:
        """Load the whole base for its projection and text tower, which makes the heads."""
        tasks, given = self.models.tasks, self.models.opened(PRETRAINED)
        base = load(self.models.base) if given is None else given.eval()
        projection, scale = base.visual_projection, base.logit_scale.detach().exp()
        self.pretrained = CLIPImageEncoder(base.vision_model, projection)
        self.experts = LoadedExperts(
            tasks, lambda task: CLIPImageEncoder(self._tower(task), projection), in_files(self, _made)
        )
        self.heads = {
            task: folded_head(zero_shot_weights(base, self.processor, *self.models.classes[task]), scale)
            for task in tasks
        }
        self.names = names_on_disk(self.pretrained, base if given is None else None)

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return images, preprocessed as CLIP reads them."""
        return images.inputs_of(rows, self.processor)

    def labels(self, task: str, rows: Rows) -> Tensor | None:
        """Return class indices."""
        names = self.models.classes[task].names
        return rows.labels(len(names), {name: place for place, name in enumerate(names)}, own=False)

    def write_beside(self, run_dir: Path) -> None:
        """Write `heads/<task>.safetensors` and `heads/<task>.json`, which no checkpoint holds.

        In the one are weight, bias and the visual projection, as they were before the adaptation; in the
        other the names of the classes.
        """
        for task, head in self.heads.items():
            write_head(
                head_path(run_dir, task),
                {**head.state_dict(), PROJECTION: self.pretrained.visual_projection.weight},
                {"task": task, "classes": list(self.models.classes[task].names), "logits": LOGITS},
            )

    @staticmethod
    def parameter_of(name: str, prefix: str) -> str:
        """Return what `CLIPImageEncoder` calls a tensor of a whole CLIP, or of a tower alone."""
        return name if name.startswith("vision_model.") else f"vision_model.{name}"

    def _tower(self, task: str) -> CLIPVisionModel:
        model = self.models.opened(task)
        return load_tower(self.models.experts[task]) if model is None else model


def require_tower(path: str, base: Any) -> None:
    """Refuse a checkpoint that is no CLIP vision tower like the base's.

    Args:
        path: folder or hub id of the expert.
        base: configuration of the base's vision tower.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: naming the expert and what differs.
    """
    config = reachable(AutoConfig.from_pretrained, path)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"The expert `{path}` is of the architecture `{config.model_type}`. Expected a CLIPVisionModel "
            "or a CLIPModel."
        )
    expert = getattr(config, "vision_config", config)
    for key in SAME:
        if getattr(expert, key) != getattr(base, key):
            raise ValueError(
                f"The expert `{path}` has `{key}` {getattr(expert, key)}; the base has "
                f"{getattr(base, key)}. Only towers of one architecture can be merged."
            )


def head_path(run_dir: Path, task: str) -> Path:
    """Return the path of the two files of a task's head in a run, without their endings.

    Args:
        run_dir: the run's folder.
        task: whose head.
    """
    return run_dir / HEADS / file_name(task)


def write_head(stem: Path, tensors: Mapping[str, Tensor], about: Mapping) -> None:
    """Write `stem`.safetensors, and beside it `stem`.json.

    Args:
        stem: path without ending.
        tensors: of the head.
        about: what is known of it.
    """
    write_tensors(stem.with_name(f"{stem.name}.safetensors"), tensors, {"format": "pt"})
    write_record(stem.with_name(f"{stem.name}.json"), dict(about))


def load(path: str) -> CLIPModel:
    """Load a whole CLIP, with its text tower, in float32.

    Args:
        path: folder or hub id.

    Raises:
        FileNotFoundError: a model that cannot be reached.
        ValueError: a model of another architecture, or tensors that the checkpoint lacks, named.
    """
    return _loaded(path, WHOLE)


def load_tower(path: str) -> CLIPVisionModel:
    """Load the vision tower of a checkpoint, which may be a whole CLIP; in float32. Raises as `load`.

    Args:
        path: folder or hub id.
    """
    model = _loaded(path, TOWERS)
    return model.vision_model if isinstance(model, CLIPModel) else model


def folded_head(zero_shot: Tensor, scale: Tensor | float) -> nn.Linear:
    """Return the zero-shot classifier as released: logits = (scale · W) z + b, with b starting at zero.

    The logit scale (100 for OpenAI's CLIP) is multiplied INTO the class weights before training, which
    at the same learning rate is another algorithm than training W with the scale outside.

    Args:
        zero_shot: W, normalized class embeddings, shape (classes, d).
        scale: exp of CLIP's logit scale.
    """
    head = nn.Linear(zero_shot.shape[1], zero_shot.shape[0])
    with torch.no_grad():
        head.weight.copy_(scale * zero_shot)
        head.bias.zero_()
    return head.requires_grad_(False)


@torch.no_grad()
def zero_shot_weights(
    clip_model: CLIPModel,
    processor: Any,
    class_names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
) -> Tensor:
    """Return normalized class embeddings (classes, d): the mean over templates of text embeddings.

    Cached on disk by the content of the text tower and of every prompt.

    Args:
        clip_model: a whole CLIP.
        processor: with its tokenizer.
        class_names: in the order of the labels.
        templates: turn a name into a prompt.
    """
    prompts = [[template(name) for template in templates] for name in class_names]
    text = {n: p for n, p in clip_model.named_parameters() if not n.startswith(("vision", "visual"))}
    tokens = processor(text=list(chain(*prompts)), return_tensors="pt", padding=True)
    key = content_hash({**text, **tokens})
    weights = recall("zero_shot_heads", key, len(prompts))
    if weights is None:
        weights = torch.stack([_class_embedding(clip_model, processor, texts) for texts in prompts])
        remember("zero_shot_heads", key, weights)
    return weights


def names_on_disk(encoder: CLIPImageEncoder, whole: CLIPModel | None = None) -> Mapping[str, str]:
    """Return parameter name -> tensor name in the checkpoint that the vision tower was loaded from.

    transformers 5 drops and restores prefixes such as `vision_model.`; this asks it which.

    Args:
        encoder: around the vision tower.
        whole: the CLIP whose part the vision tower is, if it was loaded as one.
    """
    model, prefix = (encoder.vision_model, "") if whole is None else (whole, "vision_model.")
    names = {}
    for name, parameter in encoder.vision_model.named_parameters():
        (stored,) = revert_weight_conversion(model, {prefix + name: parameter})
        names[f"vision_model.{name}"] = stored
    return names


def _require_kind(path: str, kind: str, classes: Mapping[str, type]) -> None:
    if kind not in classes:
        raise ValueError(f"`{path}` is of the architecture `{kind}`. Expected {' or '.join(classes)}.")


def _loaded(path: str, classes: Mapping[str, type]) -> CLIPModel | CLIPVisionModel:
    kind = reachable(AutoConfig.from_pretrained, path).model_type
    _require_kind(path, kind, classes)
    model, missing = load_partly(classes[kind], path, safetensors=None)
    require_complete(path, model, missing)
    return model.requires_grad_(False)


def _made(config: Any) -> CLIPModel | CLIPVisionModel:
    return TOWERS[config.model_type](config)


def _class_embedding(clip_model: CLIPModel, processor: Any, texts: list[str]) -> Tensor:
    tokens = processor(text=texts, return_tensors="pt", padding=True).to(clip_model.device)
    pooled = clip_model.text_model(**tokens).pooler_output
    embeddings = nn.functional.normalize(clip_model.text_projection(pooled), dim=-1)
    return nn.functional.normalize(embeddings.mean(0), dim=0).cpu()
