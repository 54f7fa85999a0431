"""What each family's mini shows: pre-trained < Task Arithmetic < AdaMerging < tinted <= experts, inductive.

    python benchmarks/families.py           # an hour on two cores; continues where it was stopped
    python benchmarks/families.py resnet-mini_3

A zoo is a build of a whole mini from a seed; each way is one `fusion_bench` process, adapted on `val`
without labels and scored on `test`. Scores are shares of the expert's own, averaged over tasks; metrics
differ, and of an error the share is inverted. Writes `benchmarks/results/families.json`, and a table in
Markdown beside it.

AdaMerging is layer-wise and runs in our engine, which the tests hold equal to FusionBench's step for step.
It minimizes the entropy of the predictions, which only classes have: `roberta-mini_4` has a regression
among its tasks, `nyuv2-mini_3` depth and normals, so that their cells are empty.
"""

import argparse
import functools
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from helpers.averages import plus_minus, spread
from helpers.command import RESULTS, Benchmark, known_pools
from helpers.runs import Runner

from fusion_tinting.reporting.tables import Metric, Table

MINIS = {
    "clip-mini_8": ("method=model_tinting_recommended",),
    "openclip-mini_3": ("method=model_tinting_fast",),
    "resnet-mini_3": ("method=model_tinting_fast", "method.layer=auto", "method.steps=300"),
    "roberta-mini_4": ("method=model_tinting", "method.steps=150"),
    "nyuv2-mini_3": ("method=model_tinting", "method.steps=200", "method.layer=decoder"),
}
"""Pool -> its setting: the paper's, but for images, where another layer is better, and whole decoders."""
ADAMERGING = (
    "method=model_tinting", "method.objective=entropy", "method.sampler=all", "method.layer=null",
    "method.update=joint", "method.lr=1e-3",
)  # fmt: skip
OF_CLASSES = ("clip-mini_8", "openclip-mini_3", "resnet-mini_3")
"""The pools whose tasks all are classifications."""
METRICS = {
    metric.key: metric
    for metric in (
        Metric("pearson", "Pearson"),
        Metric("accuracy", "accuracy"),
        Metric("mIoU", "mIoU"),
        Metric("abs_err", "absolute error", better="lower"),
        Metric("mean", "mean angle", better="lower"),
    )
}
"""What counts of a task, as for its task pool: the one of these that is in its report."""
COLUMNS = {
    "pretrained": "pre-trained",
    "task_arithmetic": "Task Arithmetic, λ 0.3",
    "adamerging": "AdaMerging",
    "tinted": "tinted",
}
"""Name in the results -> in the table."""


def measure(options: argparse.Namespace) -> dict:
    """Return the results of the pools that are asked for, beside those that are known."""
    pools = known_pools(options.json)
    for pool in options.pools or MINIS:
        pools[pool] = summary(pool, reports(pool, options))
    return {"pools": pools}


def reports(pool: str, options: argparse.Namespace) -> dict[int, dict[str, dict]]:
    """Return zoo -> `tinted` or `adamerging` -> the report of its run."""
    ways = {"tinted": MINIS[pool], **({"adamerging": ADAMERGING} if pool in OF_CLASSES else {})}
    plan = {
        (pool, f"zoo {zoo}", way): overrides(setting, zoo)
        for zoo in options.zoos
        for way, setting in ways.items()
    }
    done = runner(pool, options).all(plan)
    return {zoo: {way: done[pool, f"zoo {zoo}", way] for way in ways} for zoo in options.zoos}


def runner(pool: str, options: argparse.Namespace) -> Runner:
    """Return the runner of a pool's runs."""
    identity = functools.partial(content, pool)
    pools = (f"modelpool={pool}", f"taskpool={pool}")
    environment = {"OMP_NUM_THREADS": "1"}
    return Runner(options.work, options.jobs, environment, pools=pools, identity=identity)


def content(pool: str, given: tuple[str, ...]) -> list:
    """Return what a run depends on, beside our own code: delete `--work` after a change."""
    return [pool, given, version("fusion-bench"), version("torch"), version("transformers")]


def overrides(setting: tuple[str, ...], zoo: int) -> tuple[str, ...]:
    """Return the overrides of one run."""
    return (*setting, f"modelpool.zoo_seed={zoo}", "method.adapt_split=val", "fabric.accelerator=cpu")


def summary(pool: str, reports: dict[int, dict[str, dict]]) -> dict:
    """Return shares of the experts by zoo, with the scores that they are made of.

    Args:
        pool: the name of the pool.
        reports: zoo -> `tinted` or `adamerging` -> the report of its run.
    """
    scores = {zoo: scores_of(ways) for zoo, ways in reports.items()}
    columns = [name for name in COLUMNS if name != "adamerging" or pool in OF_CLASSES]
    shares = {zoo: {column: share(tasks, column) for column in columns} for zoo, tasks in scores.items()}
    return {
        "setting": " ".join(MINIS[pool]),
        "share_of_experts": {column: spread(zoo[column] for zoo in shares.values()) for column in columns},
        "by_zoo": shares,
        "scores": {zoo: {f"{t} {m}": values for (t, m), values in s.items()} for zoo, s in scores.items()},
        "seconds": {
            zoo: {way: report["seconds"] for way, report in ways.items()} for zoo, ways in reports.items()
        },
    }


def scores_of(ways: dict[str, dict]) -> dict[tuple[str, str], dict[str, float]]:
    """Return (task, metric) -> column, or `expert`, -> score."""
    by_task, baselines = {}, ways["tinted"]["baselines"]
    for task in baselines["expert"]:
        metric = next(name for name in METRICS if name in ways["tinted"][task])
        scores = {name: values[task] for name, values in baselines.items()}
        by_task[task, metric] = scores | {way: report[task][metric] for way, report in ways.items()}
    return by_task


def share(tasks: dict[tuple[str, str], dict[str, float]], column: str) -> float:
    """Return the mean over the tasks of the share of the expert's score, in percent."""
    return mean(METRICS[m].share(scores[column], scores["expert"]) for (_, m), scores in tasks.items())


def table(outcome: dict) -> Table:
    """Return one row for each pool: shares of the experts, mean ± sd over zoos; empty if there is none."""
    rows = []
    for pool, row in outcome["pools"].items():
        shares = row["share_of_experts"]
        cells = [f"{plus_minus(shares[name])} %" if name in shares else "" for name in COLUMNS]
        rows.append([f"`{pool}`", f"`{row['setting']}`", *cells, len(row["by_zoo"])])
    return Table(["pool", "setting", *COLUMNS.values(), "zoos"], rows, numeric=False)


def check(options: argparse.Namespace) -> None:
    """Refuse pools that have no setting here."""
    if unknown := set(options.pools) - set(MINIS):
        raise ValueError(f"unknown pool(s) {sorted(unknown)}; expected one or more of {list(MINIS)}")


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "pools": {"help": f"of {', '.join(MINIS)} (default: all)"},
        "--zoos": {},
        "--jobs": {"default": 1},
        "--work": {"default": Path("outputs/families")},
        "--json": {"default": RESULTS / "families.json"},
    },
    check=check,
)

if __name__ == "__main__":
    BENCHMARK.main()
