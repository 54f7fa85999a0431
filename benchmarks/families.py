"""What each family's mini shows: pre-trained < Task Arithmetic < AdaMerging < tinted <= experts, inductive.

    python benchmarks/families.py           # an hour on two cores; continues where it was stopped
    python benchmarks/families.py resnet-mini_3

A zoo is a make of a whole mini from a seed; each way is one `fusion_bench` process, adapted on `val`
without labels and scored on `test`. Scores are shares of the expert's own, averaged over tasks; metrics
differ, and of an error the share is inverted. Writes `benchmarks/results/families.json`, and a table in
Markdown beside it.

AdaMerging is layer-wise and runs in our engine, which the tests hold equal to FusionBench's step for step.
It minimises the entropy of what is predicted, which only classes have: `roberta-mini_4` has a regression
among its tasks, `nyuv2-mini_3` depth and normals, so that their cells are empty.
"""

import argparse
import functools
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from common import RESULTS, about, save
from runs import Runner, shown, spread

from fusion_tinting.reporting.tables import Metric
from fusion_tinting.run.files import read_json

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


def main() -> None:
    options = parse()
    found = read_json(options.json) if options.json.is_file() else {"pools": {}}
    for pool in options.pools or MINIS:
        found["pools"][pool] = summary(pool, reports(pool, options))
    found |= {"command": "python benchmarks/families.py", **about()}
    save(options.json, found)
    options.json.with_suffix(".md").write_text(table(found))
    print(table(found))


def reports(pool: str, options: argparse.Namespace) -> dict[int, dict[str, dict]]:
    """Zoo -> `tinted` or `adamerging` -> its run's report."""
    ways = {"tinted": MINIS[pool], **({"adamerging": ADAMERGING} if pool in OF_CLASSES else {})}
    plan = {
        (pool, f"zoo {zoo}", way): overrides(setting, zoo)
        for zoo in options.zoos
        for way, setting in ways.items()
    }
    done = runner(pool, options).all(plan)
    return {zoo: {way: done[pool, f"zoo {zoo}", way] for way in ways} for zoo in options.zoos}


def runner(pool: str, options: argparse.Namespace) -> Runner:
    identity = functools.partial(content, pool)
    pools = (f"modelpool={pool}", f"taskpool={pool}")
    environment = {"OMP_NUM_THREADS": "1"}
    return Runner(options.work, options.jobs, environment, pools=pools, identity=identity)


def content(pool: str, given: tuple[str, ...]) -> list:
    """What a run depends on, beside our own code: delete `--work` after a change."""
    return [pool, given, version("fusion-bench"), version("torch"), version("transformers")]


def overrides(setting: tuple[str, ...], zoo: int) -> tuple[str, ...]:
    return (*setting, f"modelpool.zoo_seed={zoo}", "method.adapt_split=val", "fabric.accelerator=cpu")


def summary(pool: str, reports: dict[int, dict[str, dict]]) -> dict:
    """Shares of the experts by zoo, with the scores that they are made of."""
    scores = {zoo: by_task(ways) for zoo, ways in reports.items()}
    columns = [name for name in COLUMNS if name != "adamerging" or pool in OF_CLASSES]
    shares = {
        zoo: {column: mean(share(task, column) for task in tasks.items()) for column in columns}
        for zoo, tasks in scores.items()
    }
    return {
        "setting": " ".join(MINIS[pool]),
        "share_of_experts": {column: spread(zoo[column] for zoo in shares.values()) for column in columns},
        "by_zoo": shares,
        "scores": {zoo: {f"{t} {m}": values for (t, m), values in s.items()} for zoo, s in scores.items()},
        "seconds": {
            zoo: {way: report["seconds"] for way, report in ways.items()} for zoo, ways in reports.items()
        },
    }


def by_task(ways: dict[str, dict]) -> dict[tuple[str, str], dict[str, float]]:
    """(task, metric) -> column, or `expert`, -> score."""
    found, baselines = {}, ways["tinted"]["baselines"]
    for task in baselines["expert"]:
        metric = next(name for name in METRICS if name in ways["tinted"][task])
        scores = {name: values[task] for name, values in baselines.items()}
        found[task, metric] = scores | {way: report[task][metric] for way, report in ways.items()}
    return found


def share(task: tuple[tuple[str, str], dict[str, float]], column: str) -> float:
    """A task's score as a share of its expert's, in per cent; of an error the inverse."""
    (_, metric), scores = task
    return METRICS[metric].share(scores[column], scores["expert"])


def table(found: dict) -> str:
    """One line for each pool: shares of the experts, mean ± sd over zoos; empty where there is none."""
    lines = [
        f"| pool | setting | {' | '.join(COLUMNS.values())} | zoos |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for pool, row in found["pools"].items():
        shares = row["share_of_experts"]
        cells = " | ".join(f"{shown(shares[name])} %" if name in shares else "" for name in COLUMNS)
        lines.append(f"| `{pool}` | `{row['setting']}` | {cells} | {len(row['by_zoo'])} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pools", nargs="*", help=f"of {', '.join(MINIS)} (default: all)")
    parser.add_argument("--zoos", type=int, nargs="+", default=[0, 1, 2], help="zoo seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--work", type=Path, default=Path("outputs/families"), help="where runs are kept")
    parser.add_argument("--json", type=Path, default=RESULTS / "families.json", help="where results go")
    options = parser.parse_args()
    if strange := set(options.pools) - set(MINIS):
        parser.error(f"unknown pool(s) {sorted(strange)}; expected some of {list(MINIS)}")
    return options


if __name__ == "__main__":
    main()
