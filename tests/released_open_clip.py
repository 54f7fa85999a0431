"""OpenCLIP checkpoints as they were released: pickles of whole modules, tiny ones."""

import pickle
import sys
import types
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 5, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1},
}
"""open_clip's configuration of a small ViT."""


class ImageEncoder(nn.Module):
    """As in the research code whose `src.modeling` the released pickles name."""

    def __init__(self, quick_gelu: bool):
        super().__init__()
        self.model = open_clip.CLIP(**TINY, quick_gelu=quick_gelu)
        del self.model.transformer
        self.train_preprocess = open_clip.image_transform(32, is_train=True)
        self.val_preprocess = open_clip.image_transform(32, is_train=False)
        self.cache_dir = None

    def forward(self, images):
        return self.model.encode_image(images)


class ClassificationHead(nn.Linear):
    def __init__(self, classes: int, normalize: bool, width: int = 8):
        super().__init__(width, classes)
        self.normalize = normalize

    def forward(self, inputs):
        return super().forward(inputs / inputs.norm(dim=-1, keepdim=True) if self.normalize else inputs)


def encoder(seed: int = 0, quick_gelu: bool = True) -> ImageEncoder:
    torch.manual_seed(seed)
    return ImageEncoder(quick_gelu).eval()


def expert(pretrained: ImageEncoder, seed: int) -> ImageEncoder:
    """Fine-tuned: every tensor a little off."""
    torch.manual_seed(seed)
    found = deepcopy(pretrained)
    for parameter in found.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return found


def head(classes: int, seed: int = 0, normalize: bool = True, width: int = 8) -> ClassificationHead:
    torch.manual_seed(seed)
    found = ClassificationHead(classes, normalize, width)
    found.weight.data *= 20
    return found


def release(module: nn.Module, path: Path, by_torch: bool = True) -> None:
    """Write the whole module as the research code did with open_clip 2.0.2: reading it by name would need
    `src.modeling` and `open_clip.model.VisualTransformer`, and neither is here."""
    module, home = deepcopy(module), types.ModuleType("src.modeling")
    old_tower = type("VisualTransformer", (open_clip.transformer.VisionTransformer,), {})
    old_tower.__module__ = "open_clip.model"
    released = type(type(module).__name__, (type(module),), {})
    released.__module__ = home.__name__
    setattr(home, released.__name__, released)
    module.__class__ = released
    if hasattr(module, "model"):
        module.model.visual.__class__ = old_tower
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "src", types.ModuleType("src"))
        patch.setitem(sys.modules, home.__name__, home)
        patch.setattr(open_clip.model, old_tower.__name__, old_tower, raising=False)
        if by_torch:
            torch.save(module, path)
        else:
            path.write_bytes(pickle.dumps(module))
