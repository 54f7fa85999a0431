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

The files read in this order: `task_vectors`, `coefficients`, `merging`, `tints`, `sampling`,
`objectives`, `adaptation`, `tinted_model`; `tinting.tint` puts them together.
"""

from fusion_tinting.adaptation import Adaptation, adapt
from fusion_tinting.coefficients import Coefficients
from fusion_tinting.experts import predict, predict_experts
from fusion_tinting.history import History
from fusion_tinting.merging import coefficient_gradient, load_merged, merge, merge_reference
from fusion_tinting.objectives import OBJECTIVES, agreement
from fusion_tinting.processes import Processes
from fusion_tinting.sampling import SAMPLERS
from fusion_tinting.settings import Settings
from fusion_tinting.task_vectors import TaskVectors
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.tinting import tint
from fusion_tinting.unlabeled import Unlabeled

__all__ = [
    "OBJECTIVES",
    "SAMPLERS",
    "Adaptation",
    "Coefficients",
    "History",
    "Processes",
    "Settings",
    "TaskVectors",
    "TintedModel",
    "Unlabeled",
    "adapt",
    "agreement",
    "coefficient_gradient",
    "load_merged",
    "merge",
    "merge_reference",
    "predict",
    "predict_experts",
    "tint",
]
