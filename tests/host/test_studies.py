"""The studies: what they compute, by other ways to the same figures; what they write, refuse and resume."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusion_tinting.fusionbench.studies import cross_task, layer_sweep, transfer
from fusion_tinting.reporting.tables import ACCURACY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TASKS = ["mini-digits", "mini-textures", "mini-signs"]
STEPS = "method.steps=2"
PAIR = ("~modelpool.models.mini-signs", "~taskpool.test_datasets.mini-signs")
"""Two tasks are enough, where it is not the third that is tested."""


def content_of(folder, name: str) -> dict:
    """The JSON of a study, once its other two files are seen to be there."""
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / f"{name}.md").read_text().startswith("**")
    return json.loads((folder / f"{name}.json").read_text())


def accuracies(report) -> dict[str, float]:
    return {task: report[task]["accuracy"] for task in TASKS if task in report}


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.rendered  # its labels are placed by what is drawn
class TestLayerSweep:
    SWEEP = ("method=model_tinting/layer_sweep", STEPS, "method.run_dir=run")

    @pytest.fixture(autouse=True)
    def no_pictures_of_each_run(self, monkeypatch):
        monkeypatch.setattr("fusion_tinting.reporting.plots.write_pictures", lambda model, run_dir: None)

    def test_a_row_is_the_report_of_a_run_of_its_own(self, fuse, tmp_path):
        report = fuse(*self.SWEEP, *PAIR, "method.layers=[null,head,block:1]")["report"]
        rows = content_of(tmp_path, "layer_sweep")["layers"]
        assert list(rows) == ["no tint", "head", "block:1"]
        assert rows["no tint"]["extra_parameters_per_task"] == 0
        best = max(rows.values(), key=lambda row: row["agreement"])
        assert best["per_task"] == accuracies(report)
        assert best["summary"] == pytest.approx(100 * report["average"]["accuracy"])
        block = ("method.layer=block:1", "method.run_dir=alone")
        alone = fuse("method=model_tinting_fast", STEPS, *PAIR, *block)
        assert accuracies(alone["report"]) == rows["block:1"]["per_task"]
        tint = alone["merged_model"].tints["mini-digits"]
        assert rows["block:1"]["extra_parameters_per_task"] == sum(p.numel() for p in tint.parameters())
        assert content_of(tmp_path, "layer_sweep")["experts"] == alone["report"]["baselines"]["expert"]

    def test_without_layers_it_takes_all_and_continues_where_it_was_stopped(
        self, fuse, tmp_path, monkeypatch
    ):
        fuse(*self.SWEEP, *PAIR)
        first = content_of(tmp_path, "layer_sweep")
        assert list(first["layers"])[:4] == ["no tint", "head", "block:0", "block:1"]
        assert "visual_projection" in first["layers"]
        monkeypatch.setattr("fusion_tinting.tinting.train", None)  # nothing is adapted again
        fuse(*self.SWEEP, *PAIR)
        assert content_of(tmp_path, "layer_sweep") == first


def test_cross_task_before_tinting_is_the_expert_with_another_head(fuse, tmp_path):
    report = fuse("method=model_tinting/cross_task", STEPS)["report"]
    study = content_of(tmp_path, "cross_task")
    experts = report["baselines"]["expert"]
    assert study["experts"] == experts
    encoder = accuracies(fuse("method=dummy", "modelpool.models={_pretrained_: mini-signs}")["report"])
    for task in TASKS:
        assert study["cross_task"]["mini-signs"]["before"][task] == 100 * encoder[task] / experts[task]
        together = study["merged_all"]
        assert (
            together["before"][task] == 100 * report["baselines"]["task_arithmetic"][task] / experts[task]
        )
        assert together["after"][task] == 100 * report[task]["accuracy"] / experts[task]
    without = "~modelpool.models.mini-textures"
    merged = fuse("method=task_arithmetic", "method.scaling_factor=0.3", without)
    before = study["merged_pairs"]["mini-digits + mini-signs"]["before"]
    assert before == {t: 100 * merged["report"][t]["accuracy"] / experts[t] for t in before}
    assert study["correlation"]["over_pairs"]["before"]["points"] == 6
    assert study["correlation"]["over_tasks"]["after"]["points"] == 3


def test_correlation():
    cross = {a: {"before": {b: float(3 * i + j) for j, b in enumerate("xyz")}} for i, a in enumerate("xyz")}
    pairs = {
        (a, b): {"before": {a: 2 * cross[b]["before"][a] + 1, b: 2 * cross[a]["before"][b] + 1}}
        for a, b in ("xy", "xz", "yz")
    }
    same = cross_task.correlation(*cross_task.of_pairs(cross, pairs, "before"))
    assert same["points"] == 6
    assert same["r"] == pytest.approx(1)
    x, y = cross_task.of_tasks(cross, {"before": {"x": 3.0, "y": 1.0, "z": 2.0}}, "before")
    assert x == [4.5, 4.0, 3.5]  # of x the mean of 3 and 6
    assert y == [3.0, 1.0, 2.0]
    assert cross_task.correlation(x, y)["r"] == pytest.approx(0.5)
    assert cross_task.correlation([1.0, 1.0, 1.0], y) == {"r": None, "p": None, "points": 3}
    assert cross_task.correlation(x[:2], y[:2])["r"] is None
    assert not math.isnan(cross_task.correlation(x, y)["p"])


def test_transfer_puts_every_tint_into_every_encoder(fuse, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM_COLOR_SCHEME", "dark")  # or FusionBench asks the terminal, which is captured
    report = fuse("method=model_tinting/transfer", STEPS, *PAIR, "method.adamerging.steps=2")["report"]
    study = content_of(tmp_path, "transfer")
    assert "Score, % of the experts, head tints" in capsys.readouterr().out
    scores = study["scores"]
    tinted = accuracies(report)
    assert scores["Model Tinting"]["Model Tinting"] == tinted
    assert scores["Task Arithmetic"]["original layers"] == report["baselines"]["task_arithmetic"]
    frozen = ("method=model_tinting_fast", STEPS, "method.layer=head", "method.lr_tints=0.01")
    frozen = fuse(*frozen, *PAIR, "method.lr_coefficients=0", "method.run_dir=frozen")["report"]
    assert scores["Task Arithmetic"]["Task Arithmetic"] == accuracies(frozen)
    share = mean(tinted[task] / study["experts"][task] for task in tinted)
    assert study["share_of_experts"]["Model Tinting"]["Model Tinting"] == pytest.approx(100 * share)


@pytest.mark.parametrize(
    ("study", "overrides", "message"),
    [
        ("layer_sweep", ["taskpool=dummy"], "study layer_sweep.*needs a task pool.*taskpool=clip"),
        ("cross_task", ["~taskpool"], "study cross_task.*needs a task pool.*Found none"),
        ("transfer", ["method.artifact=run"], "artifact=run` has no effect.*method.run_dir"),
        ("layer_sweep", ["method.layer=head"], r"use `method.layers=\[head\]`"),
        ("layer_sweep", ["method.lr_head=-1"], "`lr_tints` must be a number"),
        ("cross_task", ["method.lr_coefficients=0.1"], "`method.lr_coefficients` must be 0"),
        ("cross_task", [f"~taskpool.test_datasets.{task}" for task in TASKS[1:]], "at least two tasks"),
        ("transfer", ["method.layer=null", "method.lr_tints=null"], "`method.layer` must name a layer"),
        ("transfer", ["method.layer=auto"], "`method.layer` must name a layer"),
        ("cross_task", ["method.layer=auto"], "`method.layer` must name it"),
        ("transfer", ["+method.adamerging.rate=1"], "Unknown setting `rate`"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(fuse, monkeypatch, study, overrides, message):
    monkeypatch.setattr("fusion_bench.modelpool.CLIPVisionModelPool.load_model", None)
    with pytest.raises(Exception, match=message) as caught:
        fuse(f"method=model_tinting/{study}", *overrides)
    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)


def published(content: dict) -> tuple:
    """What a study makes its tables of, from the content of its JSON."""
    pairs = {tuple(pair.split(" + ")): scores for pair, scores in content.get("merged_pairs", {}).items()}
    return {
        "layer_sweep": lambda: (content["layers"], content["experts"]),
        "cross_task": lambda: (content["cross_task"], pairs, content["merged_all"], content["experts"]),
        "transfer": lambda: (content["scores"], content["experts"]),
    }[content["study"]]()


@pytest.mark.rendered
@pytest.mark.parametrize("study", [layer_sweep.LayerSweep, cross_task.CrossTask, transfer.Transfer])
def test_the_committed_tables_are_those_of_the_committed_figures(study, monkeypatch):
    path = BENCHMARKS / "results" / f"{study.name}_clip-mini_8.json"
    content, tables = json.loads(path.read_text()), []
    pool = SimpleNamespace(tasks=list(content["experts"]), metric=lambda _: ACCURACY)
    stub = object.__new__(study)
    vars(stub).update(adapt_split=content["split"], settings=content["settings"], adamerging={})
    vars(stub).update(_program=SimpleNamespace(taskpool=pool), lr_tints=None, lr_head=None)
    monkeypatch.setattr(
        study, "publish", lambda self, _, shown, figure, details=(): tables.extend([*shown, *details])
    )
    if study is cross_task.CrossTask:  # its file has shares in the place of scores
        monkeypatch.setattr(study, "shares", lambda self, scores, experts: scores)
    stub._publish(*published(content))
    assert "\n\n".join(table.markdown() for table in tables) + "\n" == path.with_suffix(".md").read_text()


def test_a_layer_that_there_is_not_is_named_before_anything_is_adapted(fuse, monkeypatch):
    monkeypatch.setattr("fusion_tinting.tinting.train", None)
    with pytest.raises(ValueError, match="Unknown layer `heads`"):
        fuse("method=model_tinting/layer_sweep", "method.layers=[head,heads]")


def test_a_study_of_the_benchmarks(cache, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pool = ["--pool", "clip-micro_3", "--seeds", "0", "--work", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["studies.py", "calibration", *pool, "--results", str(tmp_path)])
    import studies

    studies.BENCHMARK.main()
    rows = json.loads((tmp_path / "study_calibration.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["pre-trained", "Task Arithmetic", "tinted", "experts"]
    for row in rows:
        assert row["per_task"].keys() == set(TASKS)
        assert 0 <= row["error"] <= 100
    assert (tmp_path / "study_calibration.png").read_bytes().startswith(b"\x89PNG")


def test_experts_of_two_pretrainings_are_merged_around_the_firsts(cache, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import studies
    from helpers.study_world import World

    world = World("clip-micro_3", "model_tinting_fast", "val", tmp_path)
    world.settings["steps"] = 2
    monkeypatch.setitem(studies.WAYS, "AdaMerging", {**studies.WAYS["AdaMerging"], "steps": 2})
    rows = {(row["pair"], row["model"]): row for row in studies.origins(world, [0])["rows"]}
    pairs, ways = ("one pre-training", "two pre-trainings"), ("experts", "simple average", *studies.WAYS)
    assert list(rows) == [(pair, way) for pair in pairs for way in ways]
    of_one, of_two = (rows[pair, "experts"]["per_task"][0] for pair in pairs)
    own = world.accuracies("experts")
    assert of_one == {task: own[task] for task in studies.TWO}
    other = World("clip-micro_3", "model_tinting_fast", "val", tmp_path, "modelpool.zoo_seed=1")
    assert of_two == {**of_one, studies.TWO[1]: other.accuracies("experts")[studies.TWO[1]]}


def test_corrupted_images_are_the_same_whenever_they_are_read(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import numpy as np
    from helpers import corruptions
    from PIL import Image

    pixels = np.random.default_rng(0).integers(60, 200, (32, 24, 3), dtype=np.uint8)
    rows = [{"image": Image.fromarray(pixels), "label": 3}] * 2
    assert len(corruptions.CORRUPTIONS) == 7
    for name in corruptions.CORRUPTIONS:
        first, again = (corruptions.Corrupted(rows, name)[1] for _ in range(2))
        assert first["label"] == 3
        assert first["image"].size == (24, 32)
        assert first["image"].tobytes() == again["image"].tobytes()
        assert not np.array_equal(np.asarray(first["image"]), pixels)
