"""Dense prediction: a residual encoder with batch norm, and for each task a decoder (NYUv2).

The encoder is merged, its batch-norm statistics too (see `batch_norm`). A decoder is a task's own, and is a
head of two parts: the trunk, and the last layer, which alone is tinted where the tint is to be small.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_tinting.errors import unknown
from fusion_tinting.families.batch_norm import merge_statistics, name_on_disk
from fusion_tinting.families.family import Family
from fusion_tinting.families.nyuv2_scenes import Scenes
from fusion_tinting.families.rows import Rows
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.files import read_tensors, write_tensors
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

CLASSES, VALUES = "hard", "l1"
OBJECTIVE = {"segmentation": CLASSES, "depth": VALUES, "normal": VALUES}
"""NYUv2's tasks: classes are learned by `method.objective` (default `hard`), values by L1."""
MODEL_FILE = "model.safetensors"


class DenseHead(nn.Module):
    """Features (B, F, h, w) -> outputs (B, C, H, W): a decoder, then bilinear with aligned corners.

    Args:
        decoder: taken over; its last element is the last layer.
        size: H and W.
    """

    def __init__(self, decoder: nn.Sequential, size: Sequence[int]):
        super().__init__()
        *trunk, self.last = decoder
        self.trunk, self.size = nn.Sequential(*trunk), tuple(size)

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs of the images' size."""
        outputs = self.last(self.trunk(features))
        return F.interpolate(outputs, self.size, mode="bilinear", align_corners=True)

    def extra_repr(self) -> str:
        """Return what the module's representation says of it."""
        return f"size={self.size}"


class TintedDense(TintedModel):
    """A tinted model whose encoder has merged batch-norm statistics and whose heads are `DenseHead`s."""

    @property
    def merged(self) -> nn.Module:
        """The shared encoder θ(λ), of the pre-trained model's class, with batch norms of PyTorch."""
        return self.as_given

    def save_pretrained(self, path: str | Path) -> None:
        """Save the shared encoder and every task's decoder in one file, and the artifact beside it.

        `load_tensors` reads the file. A tint in the encoder is in the artifact alone.

        Args:
            path: a folder.
        """
        tensors = {f"encoder.{name}": tensor for name, tensor in self.merged.state_dict().items()}
        for task, head in zip(self.tasks, self.heads, strict=True):
            for name, tensor in self._decoder(task, head).state_dict().items():
                tensors[f"decoders.{task}.{name}"] = tensor
        write_tensors(Path(path) / MODEL_FILE, tensors, {"format": "pt"})
        self.save(path)

    def _decoder(self, task: str, head: DenseHead) -> nn.Sequential:
        part = self.tinted.path if self.tinted is not None and self.tinted.in_head else None
        head = self.tints[task] if part == "" else deepcopy(head)
        if part:
            head.set_submodule(part, self.tints[task])
        return nn.Sequential(*head.trunk, head.last)


class Dense(Family):
    """Encoders are merged; each task's head is its expert's decoder. The host loads both.

    `layer: head` tints the decoder's last layer, `layer: decoder` the whole of it.
    """

    model_class: ClassVar[type[TintedModel]] = TintedDense
    positions: ClassVar[bool] = True
    layers: ClassVar[Mapping[str, str]] = {"head": "head.last", "decoder": "head"}

    @property
    def objectives(self) -> Mapping[str, str]:
        """L1 for values; segmentation's is the run's."""
        return {task: VALUES for task in self.models.tasks if OBJECTIVE[task] == VALUES}

    def check(self) -> None:
        """Refuse tasks that are none of NYUv2's."""
        for task in self.models.tasks:
            if task not in OBJECTIVE:
                raise unknown("task", task, OBJECTIVE)

    def load(self) -> None:
        """Load the pre-trained encoder and every decoder."""
        self.pretrained = encoder_of(self.models.load(PRETRAINED))
        self.experts = LoadedExperts(self.models.tasks, lambda task: encoder_of(self.models.load(task)))
        self.heads = {task: self.models.load_head(task) for task in self.models.tasks}
        self.names = names_on_disk(self.pretrained)
        self._images: dict[Path, Unlabeled] = {}

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return a task's images; tasks with the same folder share them, in memory too."""
        workers = rows.num_workers or 0
        if not isinstance(rows.table, Scenes):
            return Unlabeled(rows.table, num_workers=workers)
        scenes = Scenes(rows.table.folder.parent, rows.table.folder.name)
        return self._images.setdefault(scenes.folder, Unlabeled(scenes, num_workers=workers))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint: a Lightning one, a state dict, or safetensors, also in a folder.

    Args:
        path: file or folder.

    Raises:
        ValueError: a file that is none of these, or that is not there.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    try:
        if file.suffix == ".safetensors":
            return read_tensors(file)[0]
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"The checkpoint `{file}` is missing. Set `ckpt_path`.") from error
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"`{file}` is no checkpoint of tensors alone: {error}") from error
    return stored.get("state_dict", stored)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: str) -> None:
    """Load `module` from the tensors whose names begin with `prefix`; others are not its own.

    Args:
        module: filled in place.
        tensors: of a checkpoint.
        prefix: of the module's own.
        path: of the checkpoint, for errors.

    Raises:
        ValueError: a tensor missing or of another shape, named.
    """
    for name, own in module.state_dict().items():
        stored = tensors.get(prefix + name)
        if stored is None and not name.endswith("num_batches_tracked"):  # which evaluation does not read
            raise ValueError(f"`{path}` lacks the tensor `{prefix}{name}` of a {type(module).__name__}.")
        if stored is not None and stored.shape != own.shape:
            raise ValueError(
                f"`{prefix}{name}` in `{path}` is {tuple(stored.shape)}; expected {tuple(own.shape)}, as "
                f"in the configuration's {type(module).__name__}."
            )
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(own, strict=False)


def encoder_of(encoder: nn.Module) -> nn.Module:
    """Make an encoder, which is taken over, ready to be merged with its statistics."""
    return merge_statistics(encoder).requires_grad_(False).eval()


def names_on_disk(encoder: nn.Module) -> dict[str, str]:
    """Return parameter name -> tensor name in a checkpoint."""
    return {name: f"encoder.{name_on_disk(name)}" for name, _ in encoder.named_parameters()}
