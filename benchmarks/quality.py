"""How good Model Tinting is on several makes of `clip-mini_8`, beside Task Arithmetic and AdaMerging.

    python benchmarks/quality.py     # half an hour on two cores; continues where it was stopped

Every figure is the report of a `fusion_bench` process, as a user would start it; each is kept in
`--work` and not run again. More methods, and seeds, are the leaderboard's. Writes
`benchmarks/results/quality_clip-mini_8.json` and the same as a Markdown table.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from common import RESULTS, about, save
from runs import Runner, average, shown, spread

from fusion_tinting.mini import recipe

ROOT = Path(__file__).resolve().parents[1]
ZOO = recipe.find("clip-mini_8").fingerprint()
METHODS = [
    (path.name, path.read_text()) for path in sorted(ROOT.glob("configs/method/model_tinting*.yaml"))
]
"""What the overrides do not say: with another recipe or other settings the runs are others."""
POOLS = ("modelpool=clip-mini_8", "taskpool=clip-mini_8", "fabric.accelerator=cpu")
TA_LAMBDAS = (0.1, 0.15, 0.2, 0.25, 0.3)
ADAMERGING = [(0.3, 1e-3), (0.3, 1e-2)]
"""Initial λ and learning rate: FusionBench's, and the paper's of Model Tinting; the better one counts."""
ON_VAL = "taskpool.test_datasets=${modelpool.val_datasets}"
THEIRS_ON_VAL = "modelpool.test_datasets=${modelpool.val_datasets}"
"""They read the model pool's test sets; the task pool keeps its own."""
TINTINGS = {
    "Model Tinting, transductive": ("method=model_tinting",),
    "Model Tinting, inductive": ("method=model_tinting", "method.adapt_split=val"),
    "recommended, inductive": ("method=model_tinting_recommended", "method.adapt_split=val"),
}


def main() -> None:
    options = parse()
    run = runner(options.work, options.jobs, {"OMP_NUM_THREADS": "1"})
    first, others = options.zoos[0], options.zoos[1:]
    for zoo in options.zoos:  # one at a time: a build uses two cores
        run.all({("zoo", zoo): (f"modelpool.zoo_seed={zoo}", "method=dummy")})
    plan = adamerging(first, ADAMERGING)
    for zoo in options.zoos:
        plan |= tintings(zoo) | task_arithmetic(zoo, "val", TA_LAMBDAS, ON_VAL)
    reports = run.all(plan)
    best = max(ADAMERGING, key=lambda setting: average(reports["AdaMerging", first, setting]))
    plan = {}
    for zoo in others:
        plan |= adamerging(zoo, [best])
    for zoo in options.zoos:
        on_val = pick(reports, "Task Arithmetic", "val", zoo)
        plan |= task_arithmetic(zoo, "test", [max(on_val, key=on_val.get)])
    reports |= run.all(plan)
    write(summary(options, reports, best))


def tintings(zoo: int) -> dict:
    """Every setting of ours."""
    return {
        (name, zoo): (f"modelpool.zoo_seed={zoo}", "seed=0", *method) for name, method in TINTINGS.items()
    }


def task_arithmetic(zoo: int, split: str, lambdas, *scored: str) -> dict:
    """FusionBench's Task Arithmetic with each λ, scored on a split."""
    return {
        ("Task Arithmetic", split, zoo, lam): (
            f"modelpool.zoo_seed={zoo}", "method=task_arithmetic", f"method.scaling_factor={lam}", *scored
        )
        for lam in lambdas
    }  # fmt: skip


def adamerging(zoo: int, settings) -> dict:
    """FusionBench's layer-wise AdaMerging: its own batch size of 16, and Model Tinting's 500 iterations."""
    return {
        ("AdaMerging", zoo, (init, lr)): (
            f"modelpool.zoo_seed={zoo}", "seed=0", "method=adamerging/clip",
            "method.name=clip_layer_wise_adamerging", f"method.init_values={init}", f"method.lr={lr}",
            "method.clamp_weights=true", "method.max_steps=500", "method.num_workers=0", THEIRS_ON_VAL,
        )
        for init, lr in settings
    }  # fmt: skip


def identity(overrides: tuple[str, ...]) -> list:
    """What a run's outcome depends on."""
    return [overrides, ZOO, METHODS, version("fusion-bench")]


def runner(work: Path, jobs: int, environment: dict[str, str]) -> Runner:
    """Runs on `clip-mini_8`."""
    return Runner(work, jobs, environment, pools=POOLS, identity=identity)


def baseline(report: dict, name: str) -> float:
    """Mean accuracy over the tasks of a baseline in a tinted model's report, in per cent."""
    return 100 * mean(report["baselines"][name].values())


def summary(options, reports: dict, best: tuple[float, float]) -> dict:
    """Rows of mean and deviation, with everything that they are made of."""
    first = options.zoos[0]
    any_run = {zoo: reports["Model Tinting, transductive", zoo] for zoo in options.zoos}
    experts = {zoo: baseline(run, "expert") for zoo, run in any_run.items()}
    chosen = {key[2]: key[3] for key in reports if key[:2] == ("Task Arithmetic", "test")}
    by_zoo = {
        "pre-trained": {zoo: baseline(run, "pretrained") for zoo, run in any_run.items()},
        "Task Arithmetic (λ chosen on val)": {
            zoo: average(reports["Task Arithmetic", "test", zoo, chosen[zoo]]) for zoo in options.zoos
        },
        "AdaMerging, inductive": {z: average(reports["AdaMerging", z, best]) for z in options.zoos},
        **{name: {z: average(reports[name, z]) for z in options.zoos} for name in TINTINGS},
        "experts": experts,
    }
    rows = {}
    for name, values in by_zoo.items():
        shares = [100 * value / experts[zoo] for zoo, value in values.items()]
        rows[name] = {"zoos": spread(values.values()), "share_of_experts": spread(shares)}
    return {
        "command": "python benchmarks/quality.py",
        "zoos": options.zoos,
        "rows": rows,
        "by_zoo": by_zoo,
        "task_arithmetic_lambda": chosen,
        "adamerging_setting": dict(zip(("init", "lr"), best, strict=True)),
        "adamerging_sweep": {
            f"init {i}, lr {lr}": a for (i, lr), a in pick(reports, "AdaMerging", first).items()
        },
        "task_arithmetic_on_val": {z: pick(reports, "Task Arithmetic", "val", z) for z in options.zoos},
        "seconds": {" ".join(map(str, key)): report["seconds"] for key, report in reports.items()},
        "report_of_the_readmes_run": any_run[first],
        "zoo_recipe": ZOO,
        **about(),
    }


def pick(reports: dict, *start) -> dict:
    """Accuracy by the last part of the key, of the runs whose key is otherwise `start`."""
    return {key[-1]: average(report) for key, report in reports.items() if key[:-1] == start}


def write(found: dict) -> None:
    path = RESULTS / "quality_clip-mini_8.json"
    save(path, found)
    path.with_suffix(".md").write_text(table(found))
    print(table(found))


def table(found: dict) -> str:
    """The rows as Markdown: accuracy % on the test split, averaged over the eight tasks."""
    lines = [f"| clip-mini_8 | {len(found['zoos'])} zoos | share of the experts |", "|---|---|---|"]
    for name, row in found["rows"].items():
        lines.append(f"| {name} | {shown(row['zoos'])} | {shown(row['share_of_experts'])} % |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--zoos", type=int, nargs="+", default=[0, 1, 2], help="zoo seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--work", type=Path, default=Path("outputs/quality"), help="where runs are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
