"""A small world for the unit tests: an encoder of blocks, experts, heads and inputs."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TASKS = ["cats", "dogs", "owls"]


class Encoder(nn.Module):
    """(B, 5) -> (B, 6), with a ModuleList of equal blocks and dropout (which adaptation must not use)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("position", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.dropout(self.norm(x))


@dataclass
class World:
    pretrained: nn.Module
    experts: dict[str, nn.Module]
    heads: dict[str, nn.Module]
    unlabeled: dict[str, list]

    def models(self) -> dict:
        return {"pretrained": self.pretrained, "experts": self.experts, "heads": self.heads}

    def tint(self, **settings):
        import fusion_tinting as ft

        options = {"steps": 4, "batch_size": 8, "progress": False, **settings}
        return ft.tint(
            self.pretrained,
            experts=self.experts,
            heads=self.heads,
            unlabeled=self.unlabeled,
            **options,
        )


def make_world(tasks=TASKS, seed=0) -> World:
    torch.manual_seed(seed)
    pretrained = Encoder()
    experts = {}
    for task in tasks:
        experts[task] = deepcopy(pretrained)
        for parameter in experts[task].parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    heads = {task: nn.Linear(6, 3 + k) for k, task in enumerate(tasks)}
    unlabeled = {task: [torch.randn(10, 5) for _ in range(4)] for task in tasks}
    return World(pretrained, experts, heads, unlabeled)
