"""The benchmarks run, and peers and ours agree in what they compute (they stop if not)."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark and run its command."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        __import__(name).main()

    return run


def test_speed(benchmark, tmp_path, capsys):
    path = tmp_path / "speed.json"
    benchmark("speed", "--tasks", "2", "--rounds", "1", "--json", str(path))
    found = json.loads(path.read_text())
    ratios = ["merge_forward_ratio", "lambda_gradient_ratio", "step_ratio_entropy", "step_ratio_paper"]
    for name in (*ratios, "step_ratio_paper_sequential"):
        assert found[name] > 0
    assert found["tasks"] == 2
    assert found["hardware"]
    assert "tinting step, paper, joint" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["FusionBench AdaMerging", "paper's loop", "ours", "ours, fp16, mmap"])
def test_memory_of_each_way(monkeypatch, way):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    peak = memory.one(way, "S", 2)
    assert peak["resident"] > peak["anonymous"] > 0
