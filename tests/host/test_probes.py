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


def test_a_probe_tells_what_is_linear_and_no_product(probes, vectors):
    known, asked = vectors[:1500], vectors[1500:]
    first, second = ((vectors - 5)[:, place] > 0 for place in (0, 5))
    for labels, least, most in ((first.long(), 0.97, 1), ((first ^ second).long(), 0.4, 0.6)):
        told = probes.probed(known, labels[:1500], asked)
        assert least <= probes.score(told, labels[1500:]) <= most


def test_a_probe_of_a_regression_is_the_least_squares_solution(probes, vectors):
    values = vectors @ torch.linspace(-1, 1, 6) ** 3 + torch.sin(vectors[:, 2])
    told = probes.probed(vectors[:1500], values[:1500], vectors[1500:])
    ones = torch.ones(len(vectors), 1)
    inputs = torch.cat([(vectors - 5) / torch.logspace(-3, 3, 6), ones], dim=1)
    exact = torch.linalg.lstsq(inputs[:1500], values[:1500, None]).solution
    assert probes.score(told, values[1500:]) == pytest.approx(
        probes.score(inputs[1500:] @ exact, values[1500:]), abs=1e-4
    )


def test_the_command_writes_scores_beside_the_experts(cache, probes, tmp_path, monkeypatch, capsys):
    path = tmp_path / "probes.json"
    monkeypatch.setenv("TERM_COLOR_SCHEME", "dark")  # or FusionBench asks the terminal, which is captured
    monkeypatch.setattr(sys, "argv", ["probes.py", "resnet-micro_3", "--zoos", "0", "--json", str(path)])
    probes.main()
    found = json.loads(path.read_text())["pools"]["resnet-micro_3"]
    for task, scores in found["by_zoo"]["0"].items():
        assert 0 <= scores["probe"] <= 1 and 0 < scores["expert"] <= 1
        row = found["tasks"][task]
        assert row["share"]["mean"] == pytest.approx(100 * scores["probe"] / scores["expert"], abs=0.01)
    table = path.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 2 + len(found["tasks"])
