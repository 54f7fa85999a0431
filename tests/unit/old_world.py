"""Models and inputs by arithmetic that is exact everywhere: release 0.1.0 wrote runs of these."""

from copy import deepcopy

import torch
from torch import Tensor, nn

TASKS = ["cats", "dogs"]


class Encoder(nn.Module):
    """(B, 4) -> (B, 4): a stem and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


def numbers(count: int, start: int) -> Tensor:
    """Multiples of 1/16 from -1 to 1, exact in float32."""
    return ((torch.arange(count) * 7 + start * 5) % 33 - 16) / 16


def fill(module: nn.Module, start: int, share: float) -> nn.Module:
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.add_(share * numbers(parameter.numel(), start + place).view(parameter.shape))
    return module


def make() -> tuple[dict, dict, dict]:
    """Models, unlabeled inputs and settings."""
    zero = Encoder()
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    pretrained = fill(zero, 1, 0.5)
    experts = {task: fill(deepcopy(pretrained), 10 * k + 20, 0.125) for k, task in enumerate(TASKS)}
    heads = {}
    for k, task in enumerate(TASKS):
        head = nn.Linear(4, 3)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        heads[task] = fill(head, 50 + k, 1.0)
    unlabeled = {task: [numbers(48, 70 + k).view(12, 4)] for k, task in enumerate(TASKS)}
    settings = {"steps": 9, "batch_size": 4, "sampler": "all", "progress": False}
    return {"pretrained": pretrained, "experts": experts, "heads": heads}, unlabeled, settings
