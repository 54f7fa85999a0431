"""Small models for the tables of cases, and what is looked at of a result."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

import fusion_tinting as ft

TASKS = ("cats", "dogs")
SAMPLES = 24


class Plain(nn.Module):
    """(B, 5) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.norm(x)


class Tokens(nn.Module):
    """Ids (B, T), and which count (B, T) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        counts = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = x + block(x).tanh()
        counts = counts.unsqueeze(-1).to(x)
        return (x * counts).sum(1) / counts.sum(1).clamp(min=1)


class Pair(nn.Module):
    """An image (B, 5) and a text (B, T) -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Plain(), Tokens()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        return self.image(pixel_values) * (1 + self.text(input_ids))


def experts_of(pretrained: nn.Module, tasks: tuple[str, ...] = TASKS, noise: float = 0.3) -> dict[str, Any]:
    """Copies with noise on every floating-point parameter."""
    torch.manual_seed(1)
    experts = {task: deepcopy(pretrained) for task in tasks}
    for expert in experts.values():
        for parameter in expert.parameters():
            if parameter.is_floating_point():
                parameter.data += noise * torch.randn(parameter.shape).to(parameter)
    return experts


def heads_of(tasks: tuple[str, ...] = TASKS, width: int = 6) -> dict[str, nn.Module]:
    """A linear head for each task."""
    torch.manual_seed(2)
    return {task: nn.Linear(width, 4) for task in tasks}


def make(kind: type[nn.Module] = Plain, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Return pre-trained model, experts and heads, as `tint` takes them."""
    torch.manual_seed(0)
    pretrained = kind()
    return {"pretrained": pretrained, "experts": experts_of(pretrained, tasks), "heads": heads_of(tasks)}


def vectors(task: int | str = 0, count: int = SAMPLES) -> Tensor:
    """The inputs of `Plain`."""
    place = TASKS.index(task) if isinstance(task, str) else task
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(10 + place))


def plain_data(tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """Batches of vectors for each task."""
    return {task: [vectors(place)] for place, task in enumerate(tasks)}


def ids(place: int = 0) -> Tensor:
    """The inputs of `Tokens`."""
    return torch.randint(11, (SAMPLES, 7), generator=torch.Generator().manual_seed(20 + place))


def mask(place: int = 0) -> Tensor:
    """Which of them count."""
    lengths = torch.randint(2, 8, (SAMPLES, 1), generator=torch.Generator().manual_seed(30 + place))
    return (torch.arange(7) < lengths).long()


def tint(models: dict[str, Any], unlabeled: Any, **options: Any) -> ft.TintedModel:
    """Run `tint` for a moment."""
    models, options = dict(models), {"steps": 3, "batch_size": 8, "progress": False, **options}
    return ft.tint(models.pop("pretrained"), **models, unlabeled=unlabeled, **options)


def look(model: ft.TintedModel, probe: Any = None) -> dict[str, Any]:
    """Return what a result is: λ, and logits of a probe (by default vectors)."""
    probe = vectors(7) if probe is None else probe
    with torch.no_grad():  # a copy for each, which the model may change
        found = {f"logits of {task}": model(deepcopy(probe), task).float() for task in model.tasks}
    return found | {"λ": torch.stack([row for _, row in sorted(model.coefficients.items())])}
