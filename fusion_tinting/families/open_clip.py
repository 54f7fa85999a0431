"""OpenCLIP image encoders with classification heads; `open_clip_files` loads them.

A released encoder is a whole CLIP without its text transformer. What `encode_image` uses are the tensors
`model.visual.*`; the rest (`model.token_embedding`, `model.logit_scale`, ...) is left where it is.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from fusion_tinting.errors import unknown
from fusion_tinting.families import images
from fusion_tinting.families.class_token import unobserved
from fusion_tinting.families.family import Family
from fusion_tinting.families.rows import Rows
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.files import write_tensors
from fusion_tinting.run.stored import StoredTensors
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

VISUAL = "model.visual."
INFO = "open_clip"
"""Key in the header of our safetensors files, of what no tensor tells: the architecture or `normalize`."""

NO_TEXT = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class Architecture:
    """What open_clip makes a visual tower from.

    Attributes:
        model_name: open_clip's name, such as `ViT-B-32`.
        embed_dim: width of the image embedding.
        vision_cfg: as in open_clip's model configurations.
        quick_gelu: the activation of OpenAI's weights, which no tensor tells.
    """

    model_name: str
    embed_dim: int
    vision_cfg: Mapping
    quick_gelu: bool = True

    @classmethod
    def named(cls, model_name: str, quick_gelu: bool = True) -> "Architecture":
        """Return an architecture that open_clip knows.

        Args:
            model_name: open_clip's name.
            quick_gelu: OpenAI's activation, as the released checkpoints have it.

        Raises:
            ValueError: an unknown name.
        """
        config = open_clip.get_model_config(model_name)
        if config is None:
            raise unknown("model_name", model_name, open_clip.list_models())
        return cls(model_name, config["embed_dim"], config["vision_cfg"], quick_gelu)

    def build(self, device: str = "meta") -> nn.Module:
        """Make the visual tower; without weights on the meta device, elsewhere with random ones.

        Args:
            device: where.
        """
        with torch.device(device):
            whole = open_clip.CLIP(self.embed_dim, dict(self.vision_cfg), NO_TEXT, self.quick_gelu)
        return whole.visual


class VisualEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> image embeddings (B, d), not normalized: OpenCLIP's `encode_image`.

    Parameters are named as on disk, `model.visual.*`. Like FusionBench's `ImageEncoder` it carries its
    `train_preprocess` and `val_preprocess`.
    """

    def __init__(self, architecture: Architecture, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.architecture = architecture
        self.model = nn.ModuleDict({"visual": architecture.build()})
        self.load_state_dict(tensors, assign=True)
        self.train_preprocess, self.val_preprocess = (preprocessing(architecture, t) for t in (True, False))

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings."""
        visual = self.model["visual"]
        return class_token(visual, images) if _is_as_made(visual) else visual(images)

    def save(self, path: Path) -> None:
        """Write the tensors with the architecture in the header, as `load_encoder` reads them."""
        _write(path, self.state_dict(), asdict(self.architecture))


def class_token(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return the image embedding, (B, d), without what nobody reads of the last block."""
    states = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        states = block(states)
    pooled, _ = visual._pool(_first_token(last, states))
    return pooled if visual.proj is None else pooled @ visual.proj


def _first_token(block: ResidualAttentionBlock, states: Tensor) -> Tensor:
    """Return the first token, (B, 1, d), that a block makes of `states`, (B, N, d)."""
    normed = block.ln_1(states)
    first = states[:, :1] + block.ls_1(block.attention(normed[:, :1], normed, normed))
    return first + block.ls_2(block.mlp(block.ln_2(first)))


def _is_as_made(visual: nn.Module) -> bool:
    """Return whether a tower is a plain vision transformer that pools its class token, in evaluation.

    OpenAI's are. The release must keep `_embeds` and `_pool` apart and put the batch first.
    """
    if type(visual) is not VisionTransformer or not {"_embeds", "_pool"} <= set(dir(visual)):
        return False
    transformer, last = visual.transformer, visual.transformer.resblocks[-1]
    return (
        (visual.attn_pool, visual.pool_type, visual.output_tokens) == (None, "tok", False)
        and (transformer.batch_first, transformer.grad_checkpointing) == (True, False)
        and (type(last), type(last.attn)) == (ResidualAttentionBlock, nn.MultiheadAttention)
        and unobserved(visual, transformer, *last.modules())
    )


class ClassificationHead(nn.Linear):
    """logits = W z + b, of z / ‖z‖ where `normalize`; the released W holds the logit scale.

    Args:
        weight: W, shape (classes, d).
        bias: b, shape (classes,), or None for zeros.
        normalize: whether the embeddings are normalized first.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, normalize: bool):
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        self.normalize = normalize

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        if self.normalize:
            embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        return super().forward(embeddings)

    def save(self, path: Path) -> None:
        """Write weight and bias with the flag in the header, as `load_head` reads them."""
        _write(path, self.state_dict(), {"normalize": self.normalize})


class TintedOpenCLIP(TintedModel):
    """A tinted model whose encoder is a `VisualEncoder`."""

    @property
    def train_preprocess(self) -> Callable:
        """The encoder's; FusionBench's `ImageClassifier` asks for both."""
        return self.encoder.train_preprocess

    @property
    def val_preprocess(self) -> Callable:
        """The encoder's."""
        return self.encoder.val_preprocess

    def save_pretrained(self, path: str | Path) -> None:
        """Save the shared encoder as `model.safetensors`, and the artifact beside it."""
        self.merged.save(Path(path) / "model.safetensors")
        self.save(path)


class OpenClip(Family):
    """Visual towers are merged; each task has the head that it was trained with. The host loads both."""

    model_class: ClassVar[type[TintedModel]] = TintedOpenCLIP

    def load(self) -> None:
        """Load the pre-trained encoder and the heads."""
        self.pretrained, self.names = self.models.load(PRETRAINED), {}
        self.experts = LoadedExperts(self.models.tasks, self.models.load, self._stored)
        self.heads = {task: self.models.load_head(task) for task in self.models.tasks}

    def _stored(self, name: str) -> StoredTensors:
        file = Path(self.models.paths[name])
        if not (file := file.with_suffix(".safetensors")).is_file():
            raise ValueError(
                f"`task_vectors.storage: stream` reads `{name}` tensor by tensor from `{file}`, which is "
                "missing: `python -m fusion_tinting.convert` writes it of a released file. Or use `memory`."
            )
        return StoredTensors({tensor: (file, tensor) for tensor, _ in self.pretrained.named_parameters()})

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return images, preprocessed as OpenAI's."""
        size = self.pretrained.architecture.vision_cfg["image_size"]
        return images.inputs_of(rows, self.pretrained.val_preprocess, f"open_clip {size}")


def preprocessing(architecture: Architecture, is_train: bool = False) -> Callable:
    """Return OpenAI's preprocessing: an image of any size and mode -> pixels (3, H, W).

    Args:
        architecture: which has the size.
        is_train: whether images are augmented.
    """
    return open_clip.image_transform(architecture.vision_cfg["image_size"], is_train=is_train)


def _write(path: Path, tensors: Mapping[str, Tensor], info: Mapping) -> None:
    write_tensors(path, tensors, {"format": "pt", INFO: json.dumps(info)})
