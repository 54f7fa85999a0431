"""What `benchmarks/ablations.py` changes: starts that are FusionBench's own merges, means, ranks, sums."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fusion_bench.method.isotropic_merging import iso_utils
from fusion_bench.method.task_singular_vector.utils import TSVM_utils
from torch import nn

import fusion_tinting as ft
from fusion_tinting.run.context import Context
from fusion_tinting.run.training import Training

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TASKS = ["cats", "dogs", "owls", "newts"]
THEIRS = {"tsv_m": TSVM_utils.compute_and_sum_svd_mem_reduction, "iso_c": iso_utils.iso_c}


@pytest.fixture
def tried(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from helpers import tried

    return tried


class World:
    """Four tasks of a model of two layers, the second of which is tinted."""

    def __init__(self, steps: int):
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 10))
        experts = {task: deepcopy(base) for task in TASKS}
        for expert in experts.values():
            for parameter in expert.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        heads = {task: nn.Linear(10, 3) for task in TASKS}
        self.model = ft.TintedModel.untrained(base, experts, heads, "1", {"dtype": "fp16"})
        self.inputs = {task: ft.Unlabeled(list(torch.randn(40, 8))) for task in TASKS}
        self.settings = ft.Settings(layer="1", update="joint", sampler="all", steps=steps, batch_size=4)
        self.predictions = {task: torch.randn(40, 3) for task in TASKS}

    def adapted(self, kind) -> dict[str, torch.Tensor]:
        with kind(self.model, self.settings, ft.Processes()) as adaptation:
            context = Context(progress=False)
            lessons = Training(adaptation, self.inputs, self.predictions, context).lessons()
            for step in range(self.settings.steps):
                adaptation.iteration(step, lessons)
        return {"λ": adaptation.coefficients.raw.detach(), **self.model.tint_modules.state_dict()}


@pytest.mark.parametrize("name", THEIRS)
def test_a_start_is_fusionbenchs_own_merge(tried, name):
    model = World(1).model
    before = model.vectors
    alone = [{} for _ in TASKS]
    for task, tensors in zip(TASKS, alone, strict=True):
        lam = torch.eye(4)[TASKS.index(task)].expand(len(before.slots), 4)
        tensors |= before.views(ft.merge(before, lam) - before.base)
    theirs = THEIRS[name](alone, accelerator="cpu")
    getattr(tried, name)(model)
    lam = torch.full((len(before.slots), 4), tried.START)
    start = before.views(ft.merge(model.vectors, lam) - before.base)
    for tensor, ours in start.items():
        torch.testing.assert_close(ours, theirs[tensor], rtol=1e-4, atol=1e-5)


def test_an_aggregation_that_is_the_sum_changes_nothing(tried):
    plain = World(6).adapted(ft.Adaptation)
    summed = World(6).adapted(
        lambda *given: tried.Aggregated(*given, aggregator=lambda k: lambda rows: rows.view(k, -1).sum(0))
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(summed[name], tensor, rtol=1e-5, atol=1e-6)


def test_tints_of_low_rank_start_at_the_nearest_and_train_what_is_added_alone(tried):
    model = World(1).model
    experts = deepcopy(model.tint_modules)
    tried.low_rank(model, rank=10)
    for tint, expert in zip(model.tint_modules, experts, strict=True):
        torch.testing.assert_close(tint.weight, expert.weight)
    world = World(1)
    base = world.model.encoder[1].weight.detach().clone()
    tried.low_rank(world.model, rank=2)
    world.adapted(ft.Adaptation)
    for tint, expert in zip(world.model.tint_modules, experts, strict=True):
        added = tint.weight.detach() - base
        assert torch.linalg.matrix_rank(added, atol=1e-5) == 2
        nearest = torch.linalg.svdvals(expert.weight.detach() - base)[2:].norm()
        assert torch.linalg.matrix_norm(added - (expert.weight.detach() - base)) < 2 * nearest
        torch.testing.assert_close(tint.parametrizations.weight.original, base)


def test_the_command_compares_with_the_setting_as_it_is(cache, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ablations

    few = ["--only", "tint: head", "soft labels", "--seeds", "0"]
    place = ["--pool", "clip-micro_3", "--work", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *few, *place])

    class Short(ablations.World):
        def __init__(self, *given: object):
            super().__init__(*given)
            self.settings["steps"] = 4

    monkeypatch.setattr(ablations, "World", Short)
    ablations.BENCHMARK.main()
    path = tmp_path / "ablations_clip-micro_3_model_tinting_fast.json"
    own, head = json.loads(path.read_text())["rows"]  # the labels are soft as it is
    assert (own["change"], head["change"]) == ("as it is", "tint: head")
    for place, run in head["runs"].items():
        assert set(run["per_task"]) == {"mini-digits", "mini-textures", "mini-signs"}
        assert place in own["runs"]
    means = [[sum(r["per_task"].values()) / 3 for r in row["runs"].values()] for row in (own, head)]
    differences = [b - a for a, b in zip(*means, strict=True)]
    assert head["difference"]["mean"] == pytest.approx(differences[0], abs=0.006)
    table = ablations.table(json.loads(path.read_text())).markdown()
    assert path.with_suffix(".md").read_text() == f"{table}\n"
