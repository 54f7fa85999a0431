"""How good Model Tinting is on several builds of `clip-mini_8`, beside Task Arithmetic and AdaMerging.

    python benchmarks/quality.py     # half an hour on two cores; continues where it was stopped

Every figure is the report of a `fusion_bench` process, as a user would start it; each is kept in
`--work` and not run again. More methods, and seeds, are the leaderboard's. Writes
`benchmarks/results/quality_clip-mini_8.json` and the same as a Markdown table.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from helpers.averages import average, plus_minus, spread
from helpers.clip_mini import ZOO, runner
from helpers.command import RESULTS, Benchmark
from helpers.runs import ADAPTED_ON_VAL, SCORED_ON_VAL

from fusion_tinting.reporting.tables import Table

TA_LAMBDAS = (0.1, 0.15, 0.2, 0.25, 0.3)
ADAMERGING = [(0.3, 1e-3), (0.3, 1e-2)]
"""Initial λ and learning rate: FusionBench's, and the paper's of Model Tinting; the better one counts."""
TINTINGS = {
    "Model Tinting, transductive": ("method=model_tinting",),
    "Model Tinting, inductive": ("method=model_tinting", "method.adapt_split=val"),
    "recommended, inductive": ("method=model_tinting_recommended", "method.adapt_split=val"),
}


def measure(options: argparse.Namespace) -> dict:
    """Run everything, and return the rows with all that they are made of."""
    run = runner(options.work, options.jobs, {"OMP_NUM_THREADS": "1"})
    first, others = options.zoos[0], options.zoos[1:]
    for zoo in options.zoos:  # one at a time: a build uses two cores
        run.all({("zoo", zoo): (f"modelpool.zoo_seed={zoo}", "method=dummy")})
    plan = adamerging(first, ADAMERGING)
    for zoo in options.zoos:
        plan |= tintings(zoo) | task_arithmetic(zoo, "val", TA_LAMBDAS, SCORED_ON_VAL)
    reports = run.all(plan)
    best = max(ADAMERGING, key=lambda setting: average(reports["AdaMerging", first, setting]))
    plan = {}
    for zoo in others:
        plan |= adamerging(zoo, [best])
    for zoo in options.zoos:
        on_val = pick(reports, "Task Arithmetic", "val", zoo)
        plan |= task_arithmetic(zoo, "test", [max(on_val, key=on_val.get)])
    reports |= run.all(plan)
    return summary(options.zoos, reports, best)


def tintings(zoo: int) -> dict:
    """Return the runs of every setting of ours."""
    return {
        (name, zoo): (f"modelpool.zoo_seed={zoo}", "seed=0", *method) for name, method in TINTINGS.items()
    }


def task_arithmetic(zoo: int, split: str, lambdas: Iterable[float], *scored: str) -> dict:
    """Return runs of FusionBench's Task Arithmetic with each λ, scored on a split."""
    return {
        ("Task Arithmetic", split, zoo, lam): (
            f"modelpool.zoo_seed={zoo}", "method=task_arithmetic", f"method.scaling_factor={lam}", *scored
        )
        for lam in lambdas
    }  # fmt: skip


def adamerging(zoo: int, settings: Iterable[tuple[float, float]]) -> dict:
    """Return runs of FusionBench's layer-wise AdaMerging: its own batch size of 16, and 500 iterations."""
    return {
        ("AdaMerging", zoo, (init, lr)): (
            f"modelpool.zoo_seed={zoo}", "seed=0", "method=adamerging/clip",
            "method.name=clip_layer_wise_adamerging", f"method.init_values={init}", f"method.lr={lr}",
            "method.clamp_weights=true", "method.max_steps=500", "method.num_workers=0", ADAPTED_ON_VAL,
        )
        for init, lr in settings
    }  # fmt: skip


def baseline(report: dict, name: str) -> float:
    """Return the mean accuracy of a baseline in a tinted model's report, in percent."""
    return 100 * mean(report["baselines"][name].values())


def summary(zoos: list[int], reports: dict, best: tuple[float, float]) -> dict:
    """Return rows of mean and deviation, with everything that they are made of."""
    any_run = {zoo: reports["Model Tinting, transductive", zoo] for zoo in zoos}
    chosen = {key[2]: key[3] for key in reports if key[:2] == ("Task Arithmetic", "test")}
    by_zoo = {
        "pre-trained": {zoo: baseline(run, "pretrained") for zoo, run in any_run.items()},
        "Task Arithmetic (λ chosen on val)": {
            zoo: average(reports["Task Arithmetic", "test", zoo, chosen[zoo]]) for zoo in zoos
        },
        "AdaMerging, inductive": {zoo: average(reports["AdaMerging", zoo, best]) for zoo in zoos},
        **{name: {zoo: average(reports[name, zoo]) for zoo in zoos} for name in TINTINGS},
        "experts": {zoo: baseline(run, "expert") for zoo, run in any_run.items()},
    }
    sweep = pick(reports, "AdaMerging", zoos[0])
    return {
        "zoos": zoos,
        "rows": {name: row(values, by_zoo["experts"]) for name, values in by_zoo.items()},
        "by_zoo": by_zoo,
        "task_arithmetic_lambda": chosen,
        "adamerging_setting": dict(zip(("init", "lr"), best, strict=True)),
        "adamerging_sweep": {f"init {i}, lr {lr}": a for (i, lr), a in sweep.items()},
        "task_arithmetic_on_val": {zoo: pick(reports, "Task Arithmetic", "val", zoo) for zoo in zoos},
        "seconds": {" ".join(map(str, key)): report["seconds"] for key, report in reports.items()},
        "report_of_the_readmes_run": any_run[zoos[0]],
        "zoo_recipe": ZOO,
    }


def row(by_zoo: dict[int, float], experts: dict[int, float]) -> dict:
    """Return mean and deviation over zoos, of accuracies and of shares of the experts'."""
    shares = [100 * value / experts[zoo] for zoo, value in by_zoo.items()]
    return {"zoos": spread(by_zoo.values()), "share_of_experts": spread(shares)}


def pick(reports: dict, *start: object) -> dict:
    """Return accuracy by the last part of the key, of the runs whose key is otherwise `start`."""
    return {key[-1]: average(report) for key, report in reports.items() if key[:-1] == start}


def table(outcome: dict) -> Table:
    """Return the table of accuracy % on the test split, averaged over the eight tasks."""
    rows = [
        [name, plus_minus(row["zoos"]), f"{plus_minus(row['share_of_experts'])} %"]
        for name, row in outcome["rows"].items()
    ]
    columns = ["clip-mini_8", f"{len(outcome['zoos'])} zoos", "share of the experts"]
    return Table(columns, rows, numeric=False)


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={"--zoos": {}, "--jobs": {}, "--work": {"default": Path("outputs/quality")}},
    path=lambda *_: RESULTS / "quality_clip-mini_8.json",
)

if __name__ == "__main__":
    BENCHMARK.main()
