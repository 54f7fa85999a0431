"""The benchmarks run, and peers and ours agree in what they compute (they stop if not)."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from fusion_tinting.families.batch_norm import merge_statistics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMANDS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark and run its command."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        importlib.import_module(name).BENCHMARK.main()

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_file_beside_the_readme_is_a_command(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert not ended.value.code
    assert f"usage: {name}.py" in capsys.readouterr().out
    assert f"`python benchmarks/{name}.py" in (BENCHMARKS / "README.md").read_text()


def test_a_command_finds_its_helpers_from_any_folder(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "families.py"), "--jobs", "none"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "invalid int value: 'none'" in refused.stderr


PROGRAM = """
import os, time
for line in ("loading task pool", "╰", os.getcwd() + " " + os.environ["GIVEN"], "No save path specified"):
    print(line, flush=True)
    time.sleep(0.1)
exit(3)
"""


def test_what_a_command_costs_is_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from helpers import runs

    environment = {"GIVEN": "a variable", **runs.READABLE}
    status, cost = runs.timed([sys.executable, "-c", PROGRAM], tmp_path, environment)
    assert status == 3
    assert f"{tmp_path} a variable\n" in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert 0.1 <= cost["method_seconds"] < cost["seconds"] < 30
    assert 1 < cost["peak_memory_mb"] < 10_000


def test_options_that_do_not_fit_each_other_are_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("leaderboard", "--quick", "--methods", "wemoe")
    assert "['wemoe'] have no quick form" in capsys.readouterr().err


def test_speed(benchmark, tmp_path, capsys):
    path = tmp_path / "speed.json"
    benchmark("speed", "--tasks", "2", "--rounds", "1", "--json", str(path))
    outcome = json.loads(path.read_text())
    ratios = ["merge_forward_ratio", "lambda_gradient_ratio", "step_ratio_entropy", "step_ratio_paper"]
    for name in (*ratios, "step_ratio_paper_sequential", "step_ratio_paper_v3"):
        assert outcome[name] > 0
    assert outcome["tasks"] == 2
    assert outcome["hardware"]
    assert "tinting step, paper's loop" in capsys.readouterr().out


@pytest.mark.parametrize(
    "way",
    ["FusionBench AdaMerging", "paper's loop", "paper's loop, third version", "ours", "ours, fp16, mmap"],
)
def test_memory_of_each_way(monkeypatch, way):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import memory

    peak = memory.one(way, "S", 2)
    assert peak["resident"] > peak["anonymous"] > 0


def test_costs_on_a_gpu_are_rehearsed_without_one(benchmark, tmp_path):
    path = tmp_path / "gpu.json"
    arguments = ("--quick", "--device", "cpu", "--json", str(path))
    benchmark("gpu", *arguments, "--only", "exactness")
    benchmark("gpu", *arguments, "--only", "passes S, K = 2, 32", "split joint S, K = 2, 32", "llama joint")
    outcome = json.loads(path.read_text())
    assert not [part for part in outcome.values() if isinstance(part, dict) and "failed" in part]
    for dtype in ("fp32", "fp16"):
        errors = outcome["exactness"][dtype]
        assert max(errors["merge"], errors["gradient"], errors["formula"]) < 1e-5
    assert set(outcome["passes S, K = 2, 32-true"]["milliseconds"]) == {"1", "2"}
    assert "| S, K = 2, 32-true |" in path.with_suffix(".md").read_text()


def test_statistics_of_batch_norm(benchmark, fuse, tmp_path, monkeypatch):
    path = tmp_path / "batch_norm.json"
    batch_norm = importlib.import_module("batch_norm")
    monkeypatch.setattr(batch_norm, "BATCHES", 4)
    monkeypatch.setattr(batch_norm, "LAMBDAS", batch_norm.LAMBDAS[:1])
    benchmark("batch_norm", "--pool", "resnet-micro_3", "--steps", "1", "--json", str(path))
    rows = {row.pop("statistics"): row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == list(batch_norm.WAYS)
    pools = ("modelpool=resnet-micro_3", "taskpool=resnet-micro_3")
    baselines = fuse("method=model_tinting", "method.steps=1", *pools)["report"]["baselines"]
    plain = 100 * mean(baselines["task_arithmetic"].values())
    assert rows["merged, log σ² (ours)"]["λ = 0.3"] == pytest.approx(plain, abs=0.01)
    assert path.with_suffix(".md").read_text().count("\n") == 2 + len(rows)


def test_a_variance_that_is_merged_itself_computes_the_same_where_nothing_is_merged(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import batch_norm

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model(5 * torch.randn(8, 3, 6, 6) + 1)
    images = torch.randn(2, 3, 6, 6)
    expected = model.eval()(images)
    changed = batch_norm.Variance().changed(merge_statistics(model))
    torch.testing.assert_close(changed(images), expected, rtol=1e-5, atol=1e-5)
