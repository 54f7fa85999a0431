"""Model Tinting (arXiv 2412.19098): learned, test-time model merging.

K experts fine-tuned from one pre-trained model become one shared encoder θ(λ) and K small tints, trained
together on unlabeled inputs with the experts as teachers:

>>> import copy, torch, fusion_tinting as ft
>>> _ = torch.manual_seed(0)
>>> encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
>>> experts = {task: copy.deepcopy(encoder) for task in ("cats", "dogs")}
>>> for expert in experts.values():  # stands for fine-tuning
...     _ = torch.nn.init.normal_(expert[0].bias, std=0.1)
>>> heads = {task: torch.nn.Linear(8, 3) for task in experts}
>>> inputs = {task: [torch.randn(16, 4)] for task in experts}  # batches, no labels
>>> tinted = ft.tint(encoder, experts=experts, heads=heads, unlabeled=inputs, steps=5, progress=False)
>>> tinted(torch.randn(2, 4), task="cats").shape
torch.Size([2, 3])
>>> tinted.coefficients["0.weight"]  # one λ per task
tensor([0.3000, 0.3000])

`README.md` beside this file says which file to read first, and where what is.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports on first use
    from fusion_tinting.method import objectives as objectives
    from fusion_tinting.method import sampling as sampling
    from fusion_tinting.method.adaptation import Adaptation as Adaptation
    from fusion_tinting.method.adaptation import Lesson as Lesson
    from fusion_tinting.method.coefficients import Coefficients as Coefficients
    from fusion_tinting.method.merging import coefficient_gradient as coefficient_gradient
    from fusion_tinting.method.merging import load_merged as load_merged
    from fusion_tinting.method.merging import merge as merge
    from fusion_tinting.method.merging import merge_reference as merge_reference
    from fusion_tinting.method.merging import merge_tensor as merge_tensor
    from fusion_tinting.method.named import Named as Named
    from fusion_tinting.method.objectives import OBJECTIVES as OBJECTIVES
    from fusion_tinting.method.objectives import Objective as Objective
    from fusion_tinting.method.objectives import Reads as Reads
    from fusion_tinting.method.objectives import agreement as agreement
    from fusion_tinting.method.sampling import SAMPLERS as SAMPLERS
    from fusion_tinting.method.settings import Settings as Settings
    from fusion_tinting.method.task_vectors import TaskVectors as TaskVectors
    from fusion_tinting.reporting.plots import write_pictures as write_pictures
    from fusion_tinting.run.experts import predict as predict
    from fusion_tinting.run.experts import predict_experts as predict_experts
    from fusion_tinting.run.history import History as History
    from fusion_tinting.run.info import RunInfo as RunInfo
    from fusion_tinting.run.processes import DistributedProcesses as DistributedProcesses
    from fusion_tinting.run.processes import Processes as Processes
    from fusion_tinting.run.tinted_model import TintedModel as TintedModel
    from fusion_tinting.run.training import adapt as adapt
    from fusion_tinting.run.unlabeled import Unlabeled as Unlabeled
    from fusion_tinting.tinting import tint as tint

_NAMES = {
    "method.adaptation": ("Adaptation", "Lesson"),
    "method.coefficients": ("Coefficients",),
    "method.merging": ("coefficient_gradient", "load_merged", "merge", "merge_reference", "merge_tensor"),
    "method.named": ("Named",),
    "method.objectives": ("OBJECTIVES", "Objective", "Reads", "agreement"),
    "method.sampling": ("SAMPLERS",),
    "method.settings": ("Settings",),
    "method.task_vectors": ("TaskVectors",),
    "reporting.plots": ("write_pictures",),
    "run.experts": ("predict", "predict_experts"),
    "run.history": ("History",),
    "run.info": ("RunInfo",),
    "run.processes": ("DistributedProcesses", "Processes"),
    "run.tinted_model": ("TintedModel",),
    "run.training": ("adapt",),
    "run.unlabeled": ("Unlabeled",),
    "tinting": ("tint",),
}
"""Module -> the public names in it, imported on first use: `--help` of our commands does not need torch."""

__all__ = sorted(name for names in _NAMES.values() for name in names)


_MODULES = {"objectives": "method.objectives", "sampling": "method.sampling"}
"""Modules that users name as part of the package: `fusion_tinting.objectives.l1`."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fusion_tinting.{_MODULES[name]}")
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"fusion_tinting.{module}"), name)
    raise AttributeError(f"module `fusion_tinting` has no attribute `{name}`")


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_MODULES]
