"""How good Model Tinting is on `clip-mini_8`, beside Task Arithmetic and AdaMerging.

    python benchmarks/quality.py            # about 90 minutes on two cores; continues where it was stopped

Every figure is the report of a `fusion_bench` process, as a user would start it; each is kept in
`--work` and not run again. Zoo seed 0 is adapted with every `--seeds`; the other `--zoos` with the first.
Writes `benchmarks/results/quality_clip-mini_8.json` and the same as a Markdown table.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).parent / "results"
POOLS = ("modelpool=clip-mini_8", "taskpool=clip-mini_8")
TA_LAMBDAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
ADAMERGING = [(init, lr) for init in (0.1, 0.2, 0.3) for lr in (1e-3, 5e-3)]
ON_VAL = "taskpool.test_datasets=${modelpool.val_datasets}"
ADAPT_THEIRS_ON_VAL = "modelpool.test_datasets=${modelpool.val_datasets}"
TINTINGS = {
    "Model Tinting, transductive": ("method=model_tinting",),
    "Model Tinting, inductive": ("method=model_tinting", "method.adapt_split=val"),
    "Model Tinting++, inductive": ("method=model_tinting_pp", "method.adapt_split=val"),
    "recommended, inductive": ("method=model_tinting_recommended", "method.adapt_split=val"),
}


def main() -> None:
    options = parse()
    run = Runner(options.work, options.jobs)
    zoos = {zoo: f"modelpool.zoo_seed={zoo}" for zoo in options.zoos}
    for zoo in zoos.values():  # one at a time: a build uses every core
        run.now([("warm-up", (zoo, "method=dummy"))])

    plan = {}
    for zoo, pick in zoos.items():
        for lam in TA_LAMBDAS:
            ta = (pick, "method=task_arithmetic", f"method.scaling_factor={lam}")
            plan["Task Arithmetic", "val", zoo, lam] = (*ta, ON_VAL)
            plan["Task Arithmetic", "test", zoo, lam] = ta
        for seed in options.seeds if zoo == options.zoos[0] else options.seeds[:1]:
            for name, method in TINTINGS.items():
                plan[name, zoo, seed] = (pick, f"seed={seed}", *method)
        sweep = ADAMERGING if zoo == options.zoos[0] else []
        plan |= {("AdaMerging", p, zoo, x): adamerging(pick, p, x) for p in PROTOCOLS for x in sweep}
    reports = run.all(plan)
    best = {
        p: max(ADAMERGING, key=lambda x: average(reports["AdaMerging", p, options.zoos[0], x]))
        for p in PROTOCOLS
    }
    rest = {
        ("AdaMerging", p, zoo, best[p]): adamerging(zoos[zoo], p, best[p])
        for p in PROTOCOLS
        for zoo in options.zoos[1:]
    }
    reports |= run.all(rest)
    write(summary(options, reports, best))


PROTOCOLS = {"transductive": (), "inductive": (ADAPT_THEIRS_ON_VAL,)}


def adamerging(zoo: str, protocol: str, setting: tuple[float, float]) -> tuple[str, ...]:
    """FusionBench's layer-wise AdaMerging with as many samples and steps as Model Tinting sees."""
    init, lr = setting
    return (
        zoo, "seed=0", "method=adamerging/clip", "method.name=clip_layer_wise_adamerging",
        f"method.init_values={init}", f"method.lr={lr}", "method.clamp_weights=true",
        "method.max_steps=500", "method.batch_size=32", "method.num_workers=0", *PROTOCOLS[protocol],
    )  # fmt: skip


class Runner:
    """Runs `fusion_bench` processes, a few at a time, and remembers their reports by their arguments."""

    def __init__(self, work: Path, jobs: int):
        self.work, self.jobs = work.resolve(), jobs

    def all(self, plan: dict) -> dict:
        return dict(zip(plan, self.now(list(plan.items())), strict=True))

    def now(self, named: list) -> list[dict]:
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda item: self.one(*item), named))

    def one(self, name, overrides: tuple[str, ...]) -> dict:
        key = hashlib.sha256(json.dumps([overrides, version("fusion-bench")]).encode()).hexdigest()[:16]
        report = self.work / key / "report.json"
        if not report.is_file():
            report.parent.mkdir(parents=True, exist_ok=True)
            command = [
                str(Path(sys.executable).parent / "fusion_bench"), *POOLS, *overrides,
                "fabric.accelerator=cpu", f"report_save_path={report.with_suffix('.partial')}",
            ]  # fmt: skip
            start = time.perf_counter()
            with open(report.with_name("log.txt"), "w") as log:
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run(
                    command, cwd=report.parent, stdout=log, stderr=log, env=environment, check=True
                )
            found = json.loads(report.with_suffix(".partial").read_text())
            report.write_text(json.dumps({**found, "seconds": round(time.perf_counter() - start, 1)}))
        found = json.loads(report.read_text())
        print(f"{average(found):6.2f}  {found['seconds']:6.0f} s  {name}", flush=True)
        return found


def average(report: dict) -> float:
    """Mean accuracy over the tasks, in per cent."""
    return 100 * report["average"]["accuracy"]


def baseline(report: dict, name: str) -> float:
    """Mean accuracy over the tasks of a baseline in a tinted model's report, in per cent."""
    return 100 * mean(report["baselines"][name].values())


def summary(options, reports: dict, best: dict) -> dict:
    """Rows of mean and deviation, with everything that they are made of."""
    first, seed = options.zoos[0], options.seeds[0]
    any_run = {zoo: reports["Model Tinting, transductive", zoo, seed] for zoo in options.zoos}
    experts = {zoo: baseline(run, "expert") for zoo, run in any_run.items()}
    chosen = {
        zoo: max(TA_LAMBDAS, key=lambda lam: average(reports["Task Arithmetic", "val", zoo, lam]))
        for zoo in options.zoos
    }
    by_zoo = {
        "pre-trained": {zoo: baseline(run, "pretrained") for zoo, run in any_run.items()},
        "Task Arithmetic (λ chosen on val)": {
            zoo: average(reports["Task Arithmetic", "test", zoo, chosen[zoo]]) for zoo in options.zoos
        },
        **{
            f"AdaMerging, {p}": {z: average(reports["AdaMerging", p, z, best[p]]) for z in options.zoos}
            for p in PROTOCOLS
        },
        **{name: {z: average(reports[name, z, seed]) for z in options.zoos} for name in TINTINGS},
        "experts": experts,
    }
    by_seed = {name: {s: average(reports[name, first, s]) for s in options.seeds} for name in TINTINGS}
    rows = {}
    for name, values in by_zoo.items():
        shares = [100 * value / experts[zoo] for zoo, value in values.items()]
        rows[name] = {"zoos": spread(values.values()), "share_of_experts": spread(shares)}
        if name in by_seed:
            rows[name]["seeds"] = spread(by_seed[name].values())
    return {
        "command": "python benchmarks/quality.py " + " ".join(sys.argv[1:]),
        "zoos": options.zoos,
        "seeds_on_first_zoo": options.seeds,
        "rows": rows,
        "by_zoo": by_zoo,
        "by_seed": by_seed,
        "task_arithmetic_lambda": chosen,
        "adamerging_setting": {p: dict(zip(("init", "lr"), best[p], strict=True)) for p in PROTOCOLS},
        "adamerging_sweep": {
            f"{p}, init {x[0]}, lr {x[1]}": average(reports["AdaMerging", p, first, x])
            for p in PROTOCOLS for x in ADAMERGING
        },
        "seconds": {" ".join(map(str, k)): r["seconds"] for k, r in reports.items() if k[0] in TINTINGS},
        "versions": {p: version(p) for p in ("fusion-tinting", "fusion-bench", "torch", "transformers")},
    }  # fmt: skip


def spread(values) -> dict:
    values = list(values)
    return {"mean": round(mean(values), 2), "sd": round(stdev(values), 2) if len(values) > 1 else None}


def write(found: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "quality_clip-mini_8.json"
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(table(found))
    print(table(found))


def table(found: dict) -> str:
    """The rows as Markdown: accuracy % on the test split, averaged over the eight tasks."""
    lines = [
        f"| clip-mini_8 | {len(found['zoos'])} zoos | {len(found['seeds_on_first_zoo'])} seeds, zoo "
        f"{found['zoos'][0]} | share of the experts |",
        "|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        seeds = shown(row["seeds"]) if "seeds" in row else ""
        lines.append(
            f"| {name} | {shown(row['zoos'])} | {seeds} | {row['share_of_experts']['mean']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def shown(value: dict) -> str:
    return f"{value['mean']:.1f}" + (f" ± {value['sd']:.1f}" if value["sd"] is not None else "")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--zoos", type=int, nargs="+", default=[0, 1, 2], help="zoo seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="adaptation seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--work", type=Path, default=Path("outputs/quality"), help="where runs are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
