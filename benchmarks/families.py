"""What each family's mini shows: pre-trained < Task Arithmetic < tinted <= experts, inductive.

    python benchmarks/families.py           # an hour on two cores; continues where it was stopped
    python benchmarks/families.py resnet-mini_3

A zoo is a make of a whole mini from a seed; each is one `fusion_bench` process, adapted on `val` without
labels and scored on `test`. Scores are shares of the expert's own, averaged over tasks; metrics differ, and
of an error the share is inverted. Writes `benchmarks/results/families.json` and a Markdown table.
"""

import argparse
import functools
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from common import RESULTS, about, save
from runs import Runner, shown, spread

from fusion_tinting.files import read_json
from fusion_tinting.reporting.tables import Metric

MINIS = {
    "clip-mini_8": ("method=model_tinting_recommended",),
    "openclip-mini_3": ("method=model_tinting_fast",),
    "resnet-mini_3": ("method=model_tinting",),
    "roberta-mini_4": ("method=model_tinting", "method.steps=150"),
    "nyuv2-mini_3": ("method=model_tinting", "method.steps=200", "method.layer=decoder"),
}
"""Pool -> its setting: the paper's, but for CLIP towers, where a block is better, and whole decoders."""
METRICS = {
    metric.key: metric
    for metric in (
        Metric("pearson", "Pearson"),
        Metric("matthews", "Matthews"),
        Metric("accuracy", "accuracy"),
        Metric("mIoU", "mIoU"),
        Metric("abs_err", "absolute error", better="lower"),
        Metric("mean", "mean angle", better="lower"),
    )
}
"""What counts of a task: the first of these in its report."""
COLUMNS = ("pretrained", "task_arithmetic", "tinted")


def main() -> None:
    options = parse()
    found = read_json(options.json) if options.json.is_file() else {"pools": {}}
    for pool in options.pools or MINIS:
        run = runner(pool, options)
        reports = run.all({(pool, f"zoo {zoo}"): overrides(pool, zoo) for zoo in options.zoos})
        found["pools"][pool] = summary(pool, dict(zip(options.zoos, reports.values(), strict=True)))
    found |= {"command": "python benchmarks/families.py", **about()}
    save(options.json, found)
    options.json.with_suffix(".md").write_text(table(found))
    print(table(found))


def runner(pool: str, options: argparse.Namespace) -> Runner:
    identity = functools.partial(content, pool)
    pools = (f"modelpool={pool}", f"taskpool={pool}")
    environment = {"OMP_NUM_THREADS": "1"}
    return Runner(options.work, options.jobs, environment, pools=pools, identity=identity)


def content(pool: str, given: tuple[str, ...]) -> list:
    """What a run depends on, beside our own code: delete `--work` after a change."""
    return [pool, given, version("fusion-bench"), version("torch"), version("transformers")]


def overrides(pool: str, zoo: int) -> tuple[str, ...]:
    return (*MINIS[pool], f"modelpool.zoo_seed={zoo}", "method.adapt_split=val", "fabric.accelerator=cpu")


def summary(pool: str, reports: dict[int, dict]) -> dict:
    """Shares of the experts by zoo, with the scores that they are made of."""
    scores = {zoo: by_task(report) for zoo, report in reports.items()}
    shares = {
        zoo: {column: mean(share(task, column) for task in tasks.items()) for column in COLUMNS}
        for zoo, tasks in scores.items()
    }
    return {
        "setting": " ".join(MINIS[pool]),
        "share_of_experts": {column: spread(zoo[column] for zoo in shares.values()) for column in COLUMNS},
        "by_zoo": shares,
        "scores": {zoo: {f"{t} {m}": values for (t, m), values in s.items()} for zoo, s in scores.items()},
        "seconds": {zoo: report["seconds"] for zoo, report in reports.items()},
    }


def by_task(report: dict) -> dict[tuple[str, str], dict[str, float]]:
    """(task, metric) -> column, or `expert`, -> score."""
    found = {}
    for task in report["baselines"]["expert"]:
        metric = next(name for name in METRICS if name in report[task])
        scores = {name: values[task] for name, values in report["baselines"].items()}
        found[task, metric] = {**scores, "tinted": report[task][metric]}
    return found


def share(task: tuple[tuple[str, str], dict[str, float]], column: str) -> float:
    """A task's score as a share of its expert's, in per cent; of an error the inverse."""
    (_, metric), scores = task
    return METRICS[metric].share(scores[column], scores["expert"])


def table(found: dict) -> str:
    """One line for each pool: shares of the experts, mean ± sd over zoos."""
    lines = [
        "| pool | setting | pre-trained | Task Arithmetic, λ 0.3 | tinted | zoos |",
        "|---|---|---|---|---|---|",
    ]
    for pool, row in found["pools"].items():
        cells = " | ".join(f"{shown(row['share_of_experts'][column])} %" for column in COLUMNS)
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
