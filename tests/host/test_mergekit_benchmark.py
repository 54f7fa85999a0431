"""The benchmark of merging runs, and both ways merge (it stops if not)."""

import json
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

from mergekit.scripts.run_yaml import main as mergekit_yaml

from fusion_tinting.mergekit.cli import main as mergekit_tint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def forked(command, **_):
    """A program, in a process that has imported what it needs."""
    main = {"mergekit-tint": mergekit_tint, "mergekit-yaml": mergekit_yaml}[Path(command[0]).name]
    process = multiprocessing.get_context("fork").Process(target=main, args=(command[1:],))
    process.start()
    return SimpleNamespace(pid=process.pid)


def test_merging(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mergekit_merge

    monkeypatch.setattr(mergekit_merge, "subprocess", SimpleNamespace(Popen=forked))

    path = tmp_path / "mergekit.json"
    asked = ["--quick", "--experts", "2", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["mergekit_merge.py", *asked])
    mergekit_merge.BENCHMARK.main()
    outcome = json.loads(path.read_text())
    assert outcome["experts"] == 2 and outcome["hardware"] and outcome["mergekit"]
    for each in (*outcome["ways"].values(), outcome["ratios"]):
        assert each["wall_s"] > 0 and each["cpu_s"] > 0 and each["anonymous_gib"] > 0
    assert "`mergekit-tint yaml`" in capsys.readouterr().out
    assert path.with_suffix(".md").read_text().startswith("| 1 + 2 models")
