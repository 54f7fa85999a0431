"""How much memory an adaptation will hold, said and compared with what is there before it begins."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion_tinting.method.adaptation import arriving
from fusion_tinting.method.blocks import blocks_of_all
from fusion_tinting.method.precision import HALF, fitting, precision_of
from fusion_tinting.method.recomputation import recomputed
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import call
from fusion_tinting.method.tints import AUTO, find_layer
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.unlabeled import Unlabeled, to_device

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
GIGABYTE = 1e9
SMALLER = (
    "`task_vectors.storage: stream` keeps neither θ₀ nor experts, `host` keeps them beside a GPU; "
    "`gradient_checkpointing: true` and a smaller `batch_size` shrink activations; a smaller `layer`, or "
    "`update: sequential`, the tints"
)
"""What to change where memory is short."""


@dataclass(frozen=True)
class Needs:
    """Bytes that an adaptation holds at its peak.

    Attributes:
        model: the encoder θ(λ) and the heads.
        experts: θ₀ and the experts, or task vectors, where they are kept.
        tints: with their gradients, their optimizer's moments and their means.
        gradients: of the encoder.
        activations: of one batch; zero if they have not been measured.
        beside: whether the experts stay in the memory beside the device.
    """

    model: int
    experts: int
    tints: int
    gradients: int
    activations: int = 0
    beside: bool = field(default=False, kw_only=True)

    @classmethod
    def of(
        cls,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        settings: Settings,
        processes: Processes | None = None,
    ) -> "Needs":
        """Return what follows from the models and the settings.

        Args:
            encoder: θ₀.
            heads: task -> its head.
            settings: of the adaptation.
            processes: where it will run; who share one model hold their parts of it.

        Raises:
            ValueError: a layer that is not there.
        """
        parts = processes.count if processes is not None and processes.shards else 1
        own, tasks = list(heads.values()), len(heads)
        half = precision_of([encoder, *own]) == HALF
        numbers = sum(parameter.numel() for parameter in encoder.parameters())
        options = settings.task_vectors
        width = 2 if half else 4
        kept = {"stream": 0, "mmap": 4}.get(options["storage"], (tasks + 1) * width)
        if options["dtype"] == "fp16" and options["storage"] == "memory":
            kept = 4 + 2 * tasks
        apart = (
            parts > 1
            or options["storage"] in ("host", "stream")
            or (half and options["storage"] == "memory" and options["dtype"] == "fp32")
        )
        largest = max((parameter.numel() for parameter in encoder.parameters()), default=0)
        return cls(
            model=width * (numbers // parts + sum(p.numel() for head in own for p in head.parameters())),
            experts=kept * numbers // parts,
            tints=_tints(encoder, own, settings) // parts,
            gradients=width * (largest if arriving(settings, numbers, apart) else numbers // parts),
            beside=options["storage"] in ("host", "stream", "mmap"),
        )

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, entry.name) for entry in fields(self) if entry.name != "beside")

    def __str__(self) -> str:
        """Return all of it in words, in gigabytes."""
        parts = [
            f"{entry.name} {getattr(self, entry.name) / GIGABYTE:.2f}"
            for entry in fields(self)
            if entry.name != "beside" and getattr(self, entry.name)
        ]
        return f"{self.total / GIGABYTE:.2f} GB ({', '.join(parts)})"

    def require_room(self, device: torch.device) -> None:
        """Refuse what cannot fit, the encoder aside, which is here already.

        Args:
            device: where the models run.

        Raises:
            ValueError: with what is needed, what is there, and what to change.
        """
        on_device = device.type == "cuda"
        here = self.total - self.model - (self.experts if on_device and self.beside else 0)
        for needed, place in ((here, device), (self.experts, torch.device("cpu"))):
            free = available(place)
            if needed > free and (place == device or (on_device and self.beside)):
                raise ValueError(
                    f"Too little memory: this needs {self}, of which {needed / GIGABYTE:.2f} GB are to be "
                    f"found on `{place}`, where {free / GIGABYTE:.2f} GB are free. {SMALLER}."
                )


def require_precision(device: torch.device, models: Iterable[nn.Module]) -> None:
    """Refuse models of bfloat16 on a GPU that does not compute in it.

    Args:
        device: where the models run.
        models: an encoder and heads.

    Raises:
        ValueError: naming the device.
    """
    if device.type == "cuda" and precision_of(models) == HALF and not torch.cuda.is_bf16_supported(False):
        raise ValueError(
            f"The models are of bfloat16, which `{device}` does not compute in. Give them in float32 "
            "(`model.float()`), or use another device."
        )


def available(device: torch.device) -> float:
    """Return how many bytes are free: of a GPU, or of the memory that this process may use.

    Args:
        device: where.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    return min(_free_of_machine(), _free_of_group())


def _free_of_machine() -> float:
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(("MemAvailable", "SwapFree"))]
    return 1024 * sum(map(float, found)) if found else math.inf


def _free_of_group() -> float:
    try:
        most, used = (Path(path).read_text(encoding="utf-8").strip() for path in LIMITS)
    except OSError:
        return math.inf
    return math.inf if most == "max" else float(most) - float(used) + _cached(Path(LIMITS[1]))


def _cached(used: Path) -> float:
    """Return how much of a group's memory holds files that were read, and is given up for what needs it."""
    path = used.with_name("memory.stat")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return sum(
        float(line.split()[1]) for line in lines if line.startswith(("active_file", "inactive_file"))
    )


def _tints(encoder: nn.Module, heads: list[nn.Module], settings: Settings) -> int:
    layer = None if settings.layer == AUTO else find_layer(encoder, settings.layer)
    if layer is None:
        return 0
    owners = heads if layer.in_head else [encoder] * len(heads)
    layers = (dict(owner.named_modules()).get(layer.path, nn.Module()) for owner in owners)
    sizes: list[int] = [sum(parameter.numel() for parameter in module.parameters()) for module in layers]
    # Several tasks with tints in their heads may go through the encoder together.
    gradients = sum(sizes) if settings.update == "joint" and layer.in_head else max(sizes)
    each = 4 + 8 + (4 if settings.average else 0)  # a number, Adam's moments of it, its mean
    return each * sum(sizes) + 4 * gradients


def activations(encoder: nn.Module, inputs: Unlabeled, settings: Settings, device: torch.device) -> int:
    """Return how many bytes a batch's activations take until the backward pass, from those of one sample.

    Args:
        encoder: θ₀, where the models run.
        inputs: of a task.
        settings: of the adaptation.
        device: where the models run.
    """
    sample = fitting(to_device(inputs.first(), device), precision_of([encoder]))
    blocks = blocks_of_all(encoder) if settings.gradient_checkpointing else []
    again = recomputed(map(encoder.get_submodule, blocks))
    with torch.enable_grad(), again, _counted(encoder) as kept:
        call(encoder, sample)
    return settings.batch_size * sum(kept.values())


@contextmanager
def _counted(encoder: nn.Module) -> Iterator[dict[int, int]]:
    """Count the memory that is kept for a backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    wanted = {p: p.requires_grad for p in encoder.parameters() if p.is_floating_point()}
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield kept
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
