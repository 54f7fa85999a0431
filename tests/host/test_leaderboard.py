"""The leaderboard, on the micro zoo: what it says is what the runs reported; nothing is run twice."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import forked
import fusion_bench.taskpool.clip_vision.taskpool  # noqa: F401  (or each run would import it)
import pytest

import fusion_tinting.fusionbench.taskpools.clip  # noqa: F401
from fusion_tinting import mini

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.rendered
ROWS = ("simple_average", "task_arithmetic", "model_tinting", "broken")


def timed(clock, command: list[str], folder: Path, environment: dict) -> tuple[int, dict]:
    """As `helpers.runs.timed`, but of a process that is forked, which starts sooner."""
    clock, begin = clock(), time.perf_counter()
    process, output = forked.start(
        forked.fusion_bench, *command[1:], folder=folder, environment=environment
    )
    with (
        open(folder / "log.txt", "w", encoding="utf-8") as log,
        os.fdopen(os.dup(output.fileno())) as lines,
    ):
        for line in lines:
            log.write(line)
            clock.see(line)
    process.join()
    seconds = {"seconds": time.perf_counter() - begin, "method_seconds": clock.seconds}
    return process.exitcode, {**seconds, "peak_memory_mb": 200.0}


@pytest.fixture(scope="module")
def board(cache, tmp_path_factory):
    """Run the command on the micro pool; returns what it wrote, and the folder of the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import leaderboard
        from helpers import rows, runs

        broken = rows.Row("broken", ("method=ties_merging", "method.merge_func=strange"), quick=())
        patch.setitem(rows.ROWS, "broken", broken)
        missing = rows.Row("missing", ("method=no_such_method",), quick=())
        patch.setitem(rows.ROWS, "missing", missing)
        patch.setattr(runs, "timed", partial(timed, runs.MethodClock))
        mini.build(0, recipe="clip-micro_3")  # or each run would import what builds it
        work = tmp_path_factory.mktemp("leaderboard")

        def run(*methods: str) -> dict:
            command = ["leaderboard.py", "--pool", "clip-micro_3", "--quick", "--work", str(work)]
            patch.setattr(sys, "argv", [*command, "--methods", *methods])
            leaderboard.BENCHMARK.main()
            return json.loads((work / "clip-micro_3.json").read_text())

        yield run, work


@pytest.fixture(scope="module")
def outcome(board) -> dict:
    return board[0](*ROWS, "missing")


def row(outcome: dict, key: str) -> dict:
    (one,) = [row for row in outcome["rows"] if row["key"] == key]
    return one


@pytest.mark.parametrize("key", ["simple_average", "task_arithmetic", "model_tinting"])
def test_a_row_has_the_figures_of_its_report(board, outcome, key):
    entry = row(outcome, key)
    (run,) = entry["runs"]
    folder = board[1] / run["folder"]
    report = json.loads((folder / "report.json").read_text())
    accuracies = {task: 100 * report[task]["accuracy"] for task in outcome["tasks"]}
    shares = [100 * value / outcome["experts"][task] for task, value in accuracies.items()]
    assert run["per_task"] == accuracies
    assert entry["accuracy"] == {"mean": round(100 * report["average"]["accuracy"], 2), "sd": None}
    assert entry["share_of_experts"]["mean"] == pytest.approx(sum(shares) / 3, abs=0.01)
    assert entry["worst_task"]["accuracy"] == round(min(accuracies.values()), 2)
    assert 0 < entry["adaptation_seconds"] < run["seconds"]
    assert entry["peak_memory_mb"]["mean"] == 200


def test_what_a_tint_costs_is_in_its_row(board, outcome):
    entry = row(outcome, "model_tinting")
    manifest = json.loads((board[1] / entry["runs"][0]["folder"] / "run/tinting.json").read_text())
    assert (entry["protocol"], entry["adapted_on"], manifest["split"]) == ("inductive", "val", "val")
    assert entry["adaptation_seconds"] >= manifest["seconds"]
    assert (entry["steps"], entry["images_per_task"]) == (5, 160)
    assert entry["extra_parameters_per_task"] > 0 and entry["task_identity"]


def test_lambda_is_the_best_on_val(outcome):
    entry = row(outcome, "task_arithmetic")
    best = max(entry["on_val"], key=entry["on_val"].get)
    assert len(entry["on_val"]) == 2
    assert entry["lam"].startswith(best)
    assert entry["extra_parameters_per_task"] == 0


@pytest.mark.parametrize(("key", "reason"), [("broken", "strange"), ("missing", "no_such_method")])
def test_a_method_that_fails_has_a_row_with_the_reason(board, outcome, key, reason):
    entry = row(outcome, key)
    assert reason in entry["failed"] and "accuracy" not in entry
    table = (board[1] / "clip-micro_3.md").read_text()
    assert f"does not run: {entry['failed']}" in table


def test_a_second_run_runs_nothing_and_shows_what_is_known(board, outcome, monkeypatch):
    from helpers import runs

    monkeypatch.setattr(runs, "timed", lambda *_: pytest.fail("a process was started"))
    assert board[0]("simple_average")["rows"] == outcome["rows"]


def test_a_run_that_was_killed_is_done_again(board, outcome, monkeypatch):
    from helpers import runs

    folder = board[1] / row(outcome, "simple_average")["runs"][0]["folder"]
    (folder / "report.json").rename(folder / "report.kept")
    kept, started = (folder / "report.kept").read_text(), []

    def timed(command, folder, environment):
        started.append(command)
        (folder / "report.partial").write_text(kept)
        return 0, {"seconds": 1.0, "method_seconds": 0.5, "peak_memory_mb": 200.0}

    monkeypatch.setattr(runs, "timed", timed)
    again = row(board[0]("simple_average"), "simple_average")
    assert len(started) == 1 and "method=simple_average" in started[0]
    assert again["accuracy"] == row(outcome, "simple_average")["accuracy"]


def test_the_plots_are_small(board, outcome):
    plots = sorted(path.name for path in board[1].glob("*.png"))
    assert plots == ["clip-micro_3_cost_inductive.png", "clip-micro_3_tasks_inductive.png"]
    assert all((board[1] / name).stat().st_size < 100_000 for name in plots)
