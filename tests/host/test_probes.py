"""The linear probes of `benchmarks/probes.py`: what they can tell, and that they run."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def probes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("probes")


@pytest.fixture
def vectors():
    return torch.randn(2000, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 6) + 5


def test_a_probe_solves_what_is_linear_and_no_product(probes, vectors):
    known, asked = vectors[:1500], vectors[1500:]
    first, second = ((vectors - 5)[:, place] > 0 for place in (0, 5))
    for labels, least, most in ((first.long(), 0.97, 1), ((first ^ second).long(), 0.4, 0.6)):
        outputs = probes.probed(known, labels[:1500], asked)
        assert least <= probes.score(outputs, labels[1500:]) <= most


def test_a_probe_of_a_regression_is_the_least_squares_solution(probes, vectors):
    values = vectors @ torch.linspace(-1, 1, 6) ** 3 + torch.sin(vectors[:, 2])
    outputs = probes.probed(vectors[:1500], values[:1500], vectors[1500:])
    ones = torch.ones(len(vectors), 1)
    inputs = torch.cat([(vectors - 5) / torch.logspace(-3, 3, 6), ones], dim=1)
    exact = torch.linalg.lstsq(inputs[:1500], values[:1500, None]).solution
    assert probes.score(outputs, values[1500:]) == pytest.approx(
        probes.score(inputs[1500:] @ exact, values[1500:]), abs=1e-4
    )


def test_a_probe_of_maps_solves_what_is_linear_in_each_place(probes):
    maps = torch.randn(200, 5, 4, 6, generator=torch.Generator().manual_seed(0)) * 9 + 3
    linear = (maps * torch.linspace(-0.05, 0.1, 5)[:, None, None]).sum(1, keepdim=True)
    targets = torch.nn.functional.interpolate(linear, (8, 12), mode="bilinear", align_corners=True)
    outputs = probes.dense_probes.fitted("depth", maps[:150], targets[:150], channels=1)(maps[150:])
    assert (outputs - targets[150:]).abs().mean() < 0.02 * targets.abs().mean()


@pytest.mark.parametrize("pool", ["resnet-micro_3", "nyuv2-micro_3"])
def test_the_command_writes_scores_beside_the_experts(cache, probes, tmp_path, monkeypatch, capsys, pool):
    path = tmp_path / "probes.json"
    monkeypatch.setenv("TERM_COLOR_SCHEME", "dark")  # or FusionBench asks the terminal, which is captured
    monkeypatch.setattr(probes.dense_probes, "STEPS", 60)
    monkeypatch.setattr(sys, "argv", ["probes.py", pool, "--zoos", "0", "--json", str(path)])
    probes.BENCHMARK.main()
    outcome = json.loads(path.read_text())["pools"][pool]
    assert len(outcome["tasks"]) == 3
    for task, scores in outcome["by_zoo"]["0"].items():
        top, bottom = ("expert", "probe") if "error" in task or "angle" in task else ("probe", "expert")
        assert scores["share"] == pytest.approx(100 * scores[top] / scores[bottom])
        assert outcome["tasks"][task]["share"]["mean"] == pytest.approx(scores["share"], abs=0.01)
    table = path.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 2 + len(outcome["tasks"])
