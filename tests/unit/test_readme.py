"""What the documentation says is what the repository has."""

import doctest
import importlib
import json
import re
from pathlib import Path
from statistics import mean

import pytest

import fusion_tinting

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def quality() -> dict:
    return json.loads((RESULTS / "quality_clip-mini_8.json").read_text())


@pytest.mark.quick
def test_the_example_in_the_packages_docstring_runs():
    assert doctest.testmod(fusion_tinting).attempted > 8
    assert doctest.testmod(fusion_tinting).failed == 0


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_results_table_is_the_benchmarks(benchmark, quality):
    table = benchmark("quality").table(quality).markdown()
    assert table in README
    assert f"{table}\n" == (RESULTS / "quality_clip-mini_8.md").read_text()


def test_the_table_of_the_main_job_is_a_recorded_runs(quality):
    report = quality["report_of_the_readmes_run"]
    baselines = report["baselines"]
    for task in baselines["expert"]:
        row = [baselines[name][task] for name in ("pretrained", "task_arithmetic", "expert")]
        tinted = report[task]["accuracy"]
        cells = [f"{100 * value:.1f}" for value in (*row, tinted, tinted / baselines["expert"][task])]
        assert re.search(rf"│ {task} +│ +" + r" │ +".join(map(re.escape, cells)) + " │", README), task


def test_the_committed_results_are_of_this_recipe(quality):
    from fusion_tinting.mini import recipe

    assert quality["zoo_recipe"] == recipe.find("clip-mini_8").fingerprint()


def test_the_committed_results_show_what_is_claimed(quality):
    """The benchmark is neither trivial nor hopeless, and the methods stand in the expected order."""
    mean = {name: row["zoos"]["mean"] for name, row in quality["rows"].items()}
    share = {name: row["share_of_experts"]["mean"] for name, row in quality["rows"].items()}
    ta = "Task Arithmetic (λ chosen on val)"
    assert 85 <= mean["experts"] <= 95
    assert mean["pre-trained"] <= 55
    assert mean[ta] >= mean["pre-trained"] + 10
    assert share[ta] <= 82  # a zoo is another on each kind of processor, by a point or two
    assert mean["AdaMerging, inductive"] > mean[ta]
    assert share["Model Tinting, transductive"] >= 93
    assert share["Model Tinting, inductive"] >= 88
    assert share["recommended, inductive"] >= 96
    assert len(quality["zoos"]) == 3


@pytest.fixture
def leaderboard() -> dict:
    return json.loads((RESULTS / "clip-mini_8.json").read_text())


def test_the_leaderboard_is_the_benchmarks(benchmark, leaderboard):
    board = benchmark("helpers.board")
    assert board.short_table(leaderboard).markdown() in README
    assert board.page(leaderboard) == (RESULTS / "clip-mini_8.md").read_text()


def test_the_leaderboard_has_every_row_and_shows_what_is_claimed(benchmark, leaderboard):
    rows = benchmark("helpers.rows").ROWS
    assert {row["key"] for row in leaderboard["rows"]} == {"pre-trained", "experts", *rows}
    outcome = {(row["key"], row.get("protocol")): row["accuracy"]["mean"] for row in leaderboard["rows"]}
    for protocol in ("inductive", "transductive"):
        ours = [outcome[name, protocol] for name in ("model_tinting", "recommended")]
        assert outcome["adamerging", protocol] + 5 < ours[0] < ours[1] <= outcome["experts", None]
        assert outcome["surgery", protocol] < ours[0]
        assert outcome["fast", protocol] > outcome["emr", None]
    assert outcome["emr", None] > outcome["model_tinting", "inductive"]
    assert min(outcome["tsv_m", None], outcome["iso_cts", None]) > outcome["adamerging", "transductive"]


def test_the_minis_of_the_families_show_what_is_claimed(benchmark):
    outcome = json.loads((RESULTS / "families.json").read_text())
    assert benchmark("families").table(outcome).markdown() in README
    for pool, row in outcome["pools"].items():
        share = {name: value["mean"] for name, value in row["share_of_experts"].items()}
        in_order = [share[name] for name in benchmark("families").COLUMNS if name in share]
        assert in_order == sorted(in_order) and share["tinted"] <= 100, pool
        assert share["task_arithmetic"] <= 90, pool
        assert share["tinted"] >= max(95, share["task_arithmetic"] + 5), pool


def test_what_a_linear_probe_keeps_is_in_the_readme(benchmark):
    outcome = study("probes")
    assert f"{benchmark('probes').table(outcome).markdown()}\n" == (RESULTS / "probes.md").read_text()
    pools = ("openclip-mini_3", "resnet-mini_3", "roberta-mini_4", "nyuv2-mini_3")
    each = [f"# to # % of `{pool}`'s" for pool in pools[1:]]
    numbers = quoted(f"keeps # to # % of an expert of `{pools[0]}`, {each[0]}, {each[1]} and {each[2]}")
    expected = []
    for pool in pools:
        shares = [task["share"]["mean"] for task in outcome["pools"][pool]["tasks"].values()]
        expected += [round(min(shares)), round(max(shares))]
    assert numbers == expected
    assert max(numbers) <= 90  # or the family's claim would say nothing


def test_the_study_of_batch_norm_is_the_benchmarks(benchmark):
    from fusion_tinting.families import batch_norm

    outcome = json.loads((RESULTS / "batch_norm.json").read_text())
    table = benchmark("batch_norm").table(outcome).markdown()
    assert table in batch_norm.__doc__
    assert f"{table}\n" == (RESULTS / "batch_norm.md").read_text()


def test_agreement_without_labels_puts_the_layers_in_the_order_of_their_accuracy():
    outcome = json.loads((RESULTS / "layer_sweep_clip-mini_8.json").read_text())["layers"]
    by_accuracy = sorted(outcome, key=lambda layer: outcome[layer]["summary"])
    assert by_accuracy == sorted(outcome, key=lambda layer: outcome[layer]["agreement"])
    assert by_accuracy[-1] == "block:0"


def quoted(pattern: str, page: str = README) -> list[float]:
    """The numbers of a sentence of a page; blanks in the pattern may be line breaks there."""
    match = re.search(pattern.replace(" ", r"\s+").replace("#", r"([\d.]*\d)"), page)
    assert match, pattern
    return [float(number) for number in match.groups()]


def study(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rounded(*values: float, digits: int = 1) -> list[float]:
    return [round(value + 1e-9, digits) for value in values]


def test_the_figures_of_the_studies_are_the_benchmarks():
    def at(outcome: dict, **wanted) -> float:
        rows = [row for row in outcome["rows"] if all(row[key] == value for key, value in wanted.items())]
        accuracies = [row["accuracy"] for row in rows]
        return mean(mean(a) if isinstance(a, list) else a for a in accuracies)

    samples = study("study_samples")
    assert quoted(
        r"worse than none \(#\), ten are enough to pass Task Arithmetic \(#\), all give #"
    ) == rounded(*(at(samples, samples=count) for count in (1, 10, 1280)))
    arithmetic = samples["references"]["Task Arithmetic"]
    assert at(samples, samples=1) < arithmetic < at(samples, samples=10)
    steps = study("study_steps")
    assert quoted("# after ten, # after 500") == rounded(at(steps, steps=10), at(steps, steps=500))
    streams = study("study_imbalance")
    assert quoted("# where tasks have 1 to 1280 images, # where they share as many") == rounded(
        at(streams, stream="imbalanced"), at(streams, stream="balanced")
    )
    errors = {row["model"]: row["error"] for row in study("study_calibration")["rows"]}
    assert quoted("error #, the experts' #, Task Arithmetic's #") == rounded(
        *(errors[name] for name in ("tinted", "experts", "Task Arithmetic"))
    )
    origins, apart = study("study_origins"), {"pair": "two pre-trainings"}
    ways = ("simple average", "AdaMerging", "tinted head", "tinted block", "experts")
    pattern = (
        r"at chance \(# and #\), a tinted head brings them to #, a tinted block to # of the experts' #\."
    )
    assert quoted(pattern) == rounded(*(at(origins, model=way, **apart) for way in ways))


def test_what_the_studies_of_fusionbench_methods_found_is_in_the_readme():
    share = study("transfer_clip-mini_8")["share_of_experts"]["Task Arithmetic"]
    pattern = "keeps # % of the experts, with its own head tints #, with those of other encoders # and #"
    sources = ("original layers", "Task Arithmetic", "AdaMerging", "Model Tinting")
    assert quoted(pattern) == rounded(*(share[source] for source in sources))
    (pairs,) = quoted("r = # over 56 pairs")
    outcome = study("cross_task_clip-mini_8")["correlation"]["over_pairs"]["before"]
    assert (round(outcome["r"], 2), outcome["points"]) == (pairs, 56)


def test_what_the_ablations_found_is_in_the_readme(benchmark):
    gains = []
    for preset in ("fast", "recommended"):
        name = f"ablations_clip-mini_8_model_tinting_{preset}"
        table = benchmark("ablations").table(study(name)).markdown()
        assert f"{table}\n" == (RESULTS / f"{name}.md").read_text()
        gains.append({row["change"]: row["difference"]["mean"] for row in study(name)["rows"]})
    gain, of_recommended = gains
    assert set(gain) == set(benchmark("ablations").CHANGES) - {
        "soft labels",
        "a step an iteration",
        "averaged",
    }  # as it is
    assert gain["λ alone"] < -5
    numbers = quoted(
        "the tint nearly all, λ # points, the mean of the last quarter #.*? TSV-M would add #\\."
    )
    assert numbers == rounded(-gain["tints alone"], -gain["last iteration"], gain["TSV-M start"])
    numbers = quoted("on two zoos, the mean is worth #, and such a start would add #\\.")
    assert numbers == rounded(-of_recommended["last iteration"], of_recommended["TSV-M start"])
    for name in ("UPGrad", "PCGrad", "CAGrad", "Nash-MTL", "MGDA"):
        assert -0.25 < gain[name] < 0.25


def test_what_corrupted_images_do_is_in_the_readme():
    rows = {
        (row["images"], row["model"]): mean(row["accuracy"]) for row in study("study_corruption")["rows"]
    }
    kinds = {images for images, _ in rows} - {"clean"}
    on_clean = {name: rows[name, "adapted on clean images"] for name in kinds}
    assert all(on_clean[name] > rows[name, "Task Arithmetic"] for name in kinds)
    gains = {name: rows[name, "adapted on corrupted images"] - on_clean[name] for name in kinds}
    gained, lost = quoted("gains # points with motion blur and loses # with impulse noise")
    assert rounded(max(gains.values()), -min(gains.values())) == [gained, lost]
    assert (max(gains, key=gains.get), min(gains, key=gains.get)) == ("motion_blur", "impulse_noise")


@pytest.mark.parametrize("tasks", [14, 20])
def test_the_figures_of_more_tasks_are_the_benchmarks(benchmark, tasks):
    outcome = json.loads((RESULTS / f"clip-mini_{tasks}.json").read_text())
    assert benchmark("helpers.board").page(outcome) == (RESULTS / f"clip-mini_{tasks}.md").read_text()
    score = {row["key"]: row["accuracy"]["mean"] for row in outcome["rows"]}
    share = {row["key"]: row["share_of_experts"]["mean"] for row in outcome["rows"]}
    numbers = quoted(
        rf"clip-mini_{tasks}\.md\), the rows that matter, inductive, one seed\) the experts "
        r"score #, the recommended setting #, `fast` #, EMR-Merging #, Model Tinting #, AdaMerging #, Task "
        r"Arithmetic #\."
    )
    keys = ("experts", "recommended", "fast", "emr", "model_tinting", "adamerging", "task_arithmetic")
    assert numbers == [float(f"{score[key]:.1f}") for key in keys]
    assert share["recommended"] >= 93
    assert score["recommended"] >= score["adamerging"] + 10


@pytest.mark.parametrize(
    ("command", "name", "page"),
    [
        ("speed", "speed_S_8", "README.md"),
        ("memory", "memory_B_8", "README.md"),
        ("time_to_quality", "time_to_quality_clip-mini_8", "README.md"),
        ("speed", "speed_S_20", "benchmarks/README.md"),
        ("speed", "speed_B_8", "benchmarks/README.md"),
    ],
)
def test_tables_of_cost_are_the_benchmarks(benchmark, command, name, page):
    outcome = json.loads((RESULTS / f"{name}.json").read_text())
    assert benchmark(command).table(outcome).markdown() in (ROOT / page).read_text()


def test_figures_of_a_gpu_are_the_benchmarks(benchmark):
    outcome = study("gpu")
    tables = [f"{table.markdown()}\n" for table in benchmark("gpu").tables(outcome)]
    assert "\n".join(tables) == (RESULTS / "gpu.md").read_text()
    assert tables[0] in (ROOT / "benchmarks" / "README.md").read_text()
    took = outcome["steps B, K = 8, 32-true"]["milliseconds"]
    ways = ("ours entropy", "FusionBench entropy", "ours sequential", "paper sequential", "paper v3")
    pattern = (
        "takes # ms an entropy step beside FusionBench's #, and # ms a tinting step beside # of the "
        "paper's loop and # of its third version"
    )
    assert quoted(pattern) == [round(took[way]) for way in ways]


def test_the_committed_costs_show_what_is_claimed():
    """Bars of a merge, of whole steps, of memory and of time to quality."""

    def read(name: str) -> dict:
        return json.loads((RESULTS / f"{name}.json").read_text())

    for name, merge, gradient in (("S_8", 3, 3.5), ("S_20", 3, 3.5), ("B_8", 2.5, 2.3)):
        outcome = read(f"speed_{name}")
        assert outcome["merge_forward_ratio"] >= merge
        assert outcome["lambda_gradient_ratio"] >= gradient
        assert min(value for name, value in outcome.items() if name.startswith("step_ratio")) > 1
    small, large, real = read("speed_S_8"), read("speed_S_20"), read("speed_B_8")
    assert small["step_ratio_entropy"] >= 1.25
    assert large["step_ratio_entropy"] >= 1.6
    assert real["step_ratio_entropy"] >= 1.1
    assert small["step_ratio_paper"] >= 1.8
    assert large["step_ratio_paper"] >= 2.8
    assert small["step_ratio_paper_sequential"] >= 1.6
    half = real["median_seconds"]
    ours = half["ours entropy"] / half["encoder alone"]
    theirs = half["FusionBench entropy"] / half["every token alone"]
    page = (ROOT / "benchmarks" / "README.md").read_text()
    numbers = quoted(
        "at scale B # % more, where FusionBench's step is # % above its own, so that an engine alone could "
        "be ahead there # times at most",
        page,
    )
    assert numbers == [round(100 * (ours - 1)), round(100 * (theirs - 1)), pytest.approx(theirs, abs=0.005)]
    memory = read("memory_B_8")
    assert memory["peak_memory_ratio"] >= 1.4
    assert memory["mmap_growth_mb"] < 100
    for row in read("time_to_quality_clip-mini_8")["rows"].values():
        assert row["times_as_fast"] >= 5
        assert row["points_gained"] >= -0.2


def test_the_tests_command_is_the_one_that_continuous_integration_runs():
    assert 'pip install -e ".[test]" && pytest' in README
    script = (ROOT / ".ci" / "run").read_text()
    assert '-e ".[test]"' in script
    assert script.rstrip().endswith("pytest")


@pytest.mark.quick
@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)\)", README))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.quick
@pytest.mark.parametrize("name", sorted(set(re.findall(r"`ft\.(\w+)", README))))
def test_names_of_the_python_interface_exist(name):
    assert hasattr(fusion_tinting, name)


@pytest.mark.quick
@pytest.mark.parametrize("name", sorted(set(re.findall(r"method=(model_tinting\w*)", README))))
def test_methods_have_configurations(name):
    assert (ROOT / "configs" / "method" / f"{name}.yaml").is_file()
