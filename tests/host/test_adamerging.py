"""With the entropy objective and no tint it IS layer-wise AdaMerging: beside FusionBench's own class."""

from copy import deepcopy

import pytest
import torch
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.models.wrappers.layer_wise_fusion import (
    LayerWiseMergedModel,
    get_layer_wise_weights,
)
from lightning import Fabric
from omegaconf import OmegaConf
from torch import nn

import fusion_tinting as ft
from fusion_tinting.method.schedule import batch_schedule, task_order
from fusion_tinting.run.context import Context
from fusion_tinting.run.training import Training

TASKS = ["a", "b", "c"]
STEPS, BATCH, SEED = 12, 8, 5


class TheirAdaMerging(LayerWiseAdaMergingAlgorithm):
    """FusionBench's loop as it is, on our batches, recording λ after every step."""

    def __init__(self, config, heads, inputs):
        super().__init__(config)
        self.heads, self.trace = heads, []
        self.schedules = {t: iter(batch_schedule(len(inputs[t]), BATCH, STEPS, SEED, t)) for t in inputs}
        self.inputs = inputs
        self.fabric = Fabric(accelerator="cpu", devices=1, loggers=[])
        self.modelpool = type("Pool", (), {"model_names": TASKS})

    def get_shuffled_test_loader_iter(self, task):
        return ((self.inputs[task][rows],) for rows in self.schedules[task])

    def compute_logits(self, module, images, task):
        self.trace.append(module.merge_weight.detach().clone())
        return self.heads[task](module(images))


@pytest.mark.parametrize(
    ("lr", "init", "clamp"), [(1e-3, 0.3, True), (5e-2, 0.9, True), (1e-2, 0.3, False)]
)
def test_every_step_agrees_with_fusionbench(lr, init, clamp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8))
    experts = {}
    for task in TASKS:
        experts[task] = deepcopy(encoder)
        for parameter in experts[task].parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    heads = {task: nn.Linear(8, 4).requires_grad_(False) for task in TASKS}
    inputs = {task: torch.randn(40, 5) for task in TASKS}

    config = OmegaConf.create({"optimizer": "adam", "lr": lr, "max_steps": STEPS, "fast_dev_run": False})
    theirs = TheirAdaMerging(config, heads, inputs)
    theirs.test_time_adaptation(
        LayerWiseMergedModel(
            get_layer_wise_weights(3, len(list(encoder.parameters())), init),
            deepcopy(encoder),
            [deepcopy(expert) for expert in experts.values()],
            clamp_weights=clamp,
        )
    )

    ours = []
    model = ft.TintedModel.untrained(encoder, experts, heads, layer=None)
    unlabeled = {task: ft.Unlabeled.of([rows]) for task, rows in inputs.items()}
    predictions = ft.predict_experts(experts, heads, unlabeled, progress=False)
    settings = ft.Settings(
        layer=None, objective="entropy", sampler="all", update="joint",
        steps=STEPS, batch_size=BATCH, seed=SEED, lr=lr, init=init, clamp=clamp,
    )  # fmt: skip
    with ft.Adaptation(model, settings, ft.Processes()) as adaptation:
        lessons = Training(adaptation, unlabeled, predictions, Context(progress=False)).lessons()
        for step in range(STEPS):
            ours.append(adaptation.coefficients.raw.detach().clone())
            adaptation.iteration(step, lessons)
    assert set(task_order(TASKS, 0, SEED)) == set(TASKS)
    for step in range(STEPS):  # they ask for logits once per task and step
        torch.testing.assert_close(ours[step], theirs.trace[3 * step].T, rtol=0, atol=2e-6)
    assert not torch.allclose(ours[-1], ours[0], atol=STEPS * lr / 4)
