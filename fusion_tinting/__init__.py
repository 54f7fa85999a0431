"""Model Tinting (arXiv 2412.19098): learned, test-time model merging.

K experts fine-tuned from one pre-trained model become one shared encoder θ(λ) and K small tints, trained
together on unlabelled inputs with the experts as teachers:

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

Read `method/` first: `task_vectors`, `coefficients`, `merging`, `tints`, `sampling`, `objectives`,
`adaptation`, `tinted_model`. `tinting.tint` puts them together with what `run/` adds.
"""

import importlib

_NAMES = {
    "method.adaptation": ("Adaptation", "adapt"),
    "method.coefficients": ("Coefficients",),
    "run.experts": ("predict", "predict_experts"),
    "run.history": ("History",),
    "method.merging": ("coefficient_gradient", "load_merged", "merge", "merge_reference"),
    "method.objectives": ("OBJECTIVES", "agreement"),
    "run.processes": ("DistributedProcesses", "Processes"),
    "method.sampling": ("SAMPLERS",),
    "method.settings": ("Settings",),
    "method.task_vectors": ("TaskVectors",),
    "method.tinted_model": ("TintedModel",),
    "tinting": ("tint",),
    "run.unlabeled": ("Unlabeled",),
}
"""Module -> the public names in it, imported on first use: `--help` of our commands does not need torch."""

__all__ = sorted(name for names in _NAMES.values() for name in names)


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"fusion_tinting.{module}"), name)
    raise AttributeError(f"module `fusion_tinting` has no attribute `{name}`")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
