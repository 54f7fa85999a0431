"""Where Model Tinting stands: every method through `fusion_bench`, each run in a process of its own.

    python benchmarks/leaderboard.py --pool clip-mini_8 --seeds 3    # continues where it was stopped
    python benchmarks/leaderboard.py --quick                         # a few rows and steps, some minutes

A run is done again only if its composed configuration, the versions, the zoo's recipe or (for our rows)
our own source has changed. Inductive: adapted on `val` without labels, scored on `test`; transductive:
adapted on the test images without labels. Each run has one CPU thread, and a cache with nothing but zoos.
Writes `benchmarks/results/<pool>.json`, `.md` and plots; with `--quick` into the folder of the runs.
"""

import argparse
import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

import torch
from helpers import board, board_plots, outcomes
from helpers.command import RESULTS, Benchmark
from helpers.composed import compose_run
from helpers.machine import PACKAGES, about
from helpers.rows import ROWS, UNLABELED, Row
from helpers.runs import ADAPTED_ON_VAL, SCORED_ON_VAL, RunFailed, Runner
from hydra.errors import HydraException
from omegaconf import OmegaConf

import fusion_tinting
from fusion_tinting.mini import recipe
from fusion_tinting.run.files import read_json

PROTOCOLS = {"inductive": "val", "transductive": "test"}
"""Name -> the split adapted on; both are scored on `test`."""


def measure(options: argparse.Namespace) -> dict:
    """Run what is asked for, and return all that is known."""
    plan = Plan(options)
    plan.run.all({"pre-trained": plan.pretrained})  # alone: it builds the zoo, with every core
    plan.run.all({f"expert {task}": overrides for task, overrides in plan.experts.items()})
    asked = {name: plan.rows[name] for name in options.methods or plan.rows}
    plan.attempt({f"{r.title} λ={lam}, val": o for r in asked.values() for lam, o in plan.grid(r).items()})
    protocols = PROTOCOLS if options.split == "both" else [options.split]
    plan.attempt(
        {
            f"{row.title}, {protocol or 'no protocol'}, seed {seed}": plan.final(row, protocol, seed)
            for seed in range(options.seeds)  # the outer loop: a whole board stands after the first seed
            for row in asked.values()
            for protocol in (protocols if row.data == UNLABELED else [None])
            if row.seeded or seed == 0
        }
    )
    return summary(plan, options)


class Plan:
    """Which runs there are, by their overrides, and what is known of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.seeds = options.quick, options.seeds
        self.rows = {name: row for name, row in ROWS.items() if not self.quick or row.quick is not None}
        zoo = () if options.zoo_seed is None else (f"modelpool.zoo_seed={options.zoo_seed}",)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        pools = (f"modelpool={options.pool}", f"taskpool={options.pool}", *zoo)
        pools = (*pools, f"fabric.accelerator={self.device}")
        self.composed = functools.partial(composed, pools)
        self.run = Runner(
            options.work, options.jobs, {"OMP_NUM_THREADS": "1"},
            pools=pools, identity=functools.partial(identity, pools), failures=source(), fresh_cache=True,
        )  # fmt: skip
        self.seconds = {}
        self.pretrained = ("method=dummy",)
        self.tasks = list(self.composed(self.pretrained)["taskpool"]["test_datasets"])
        self.experts = {task: self._expert(task) for task in self.tasks}

    def _expert(self, task: str) -> tuple[str, ...]:
        """Return the run of the expert in the pre-trained model's place, scored on its own task alone."""
        others = [f"~taskpool.test_datasets.{other}" for other in self.tasks if other != task]
        return ("method=dummy", f"modelpool.models._pretrained_=${{modelpool.models.{task}}}", *others)

    def settings(self, row: Row, protocol: str | None) -> tuple[str, ...]:
        """Return the overrides of a method under a protocol."""
        adapt = ()
        if protocol is not None and row.ours:
            adapt = (f"method.adapt_split={PROTOCOLS[protocol]}",)
        elif protocol == "inductive":
            adapt = (ADAPTED_ON_VAL,)
        return (*row.overrides, *adapt, *(row.quick if self.quick else ()))

    def grid(self, row: Row) -> dict[float, tuple[str, ...]]:
        """Return λ -> the run that scores it by `val` labels; empty for a row that is not tuned."""
        if row.tuned is None:
            return {}
        base, values = self.settings(row, None), row.grid[1:4:2] if self.quick else row.grid
        return {lam: (*base, f"{row.tuned}={lam}", "seed=0", SCORED_ON_VAL) for lam in values}

    def on_val(self, row: Row) -> dict[float, float]:
        """Return λ -> accuracy on `val`, of the runs that are done."""
        done = {lam: self.done(overrides) for lam, overrides in self.grid(row).items()}
        return {lam: 100 * run["report"]["average"]["accuracy"] for lam, run in done.items() if run}

    def final(self, row: Row, protocol: str | None, seed: int) -> tuple[str, ...]:
        """Return the run that is scored on `test`; where every λ has failed, that of the first."""
        tuned = ()
        if row.tuned is not None:
            scores = self.on_val(row)
            tuned = (f"{row.tuned}={max(scores, key=scores.get, default=row.grid[0])}",)
        return (*self.settings(row, protocol), *tuned, f"seed={seed}")

    def attempt(self, runs: dict[str, tuple[str, ...]]) -> None:
        """Run what can be run; keep and print a failure."""

        def one(item: tuple[str, tuple[str, ...]]) -> None:
            try:
                self.run.one(*item)
            except RunFailed as failure:
                print(f"failed  {failure}", flush=True)

        self.run.each(one, runs)

    @property
    def hours(self) -> float:
        """Hours of all finished processes that were asked for, the choice of λ included."""
        return round(sum(self.seconds.values()) / 3600, 2)

    def done(self, overrides: tuple[str, ...]) -> dict | None:
        """Return what is known of a finished run."""
        folder = self.run.folder(overrides)
        if not (folder / "report.json").is_file():
            return None
        cost = read_json(folder / "cost.json")
        self.seconds[folder] = cost["seconds"]
        return {
            "report": read_json(folder / "report.json"),
            "cost": cost,
            "folder": folder,
            "method": self.composed(overrides)["method"],
        }


@functools.cache
def composed(pools: tuple[str, ...], overrides: tuple[str, ...]) -> dict:
    """Return the configuration that FusionBench's command composes from these overrides."""
    return OmegaConf.to_container(compose_run(*pools, *overrides), resolve=False)


@functools.cache
def identity(pools: tuple[str, ...], overrides: tuple[str, ...]) -> list:
    """Return what a run's outcome depends on."""
    versions = {name: version(name) for name in PACKAGES if name != "fusion-tinting"}
    try:
        config = composed(pools, overrides)
    except HydraException:  # the run will fail, and say why
        return [*pools, *overrides, versions]
    content = [config[part] for part in ("method", "modelpool", "taskpool", "seed")]
    zoo = config["modelpool"].get("recipe")
    ours = config["method"].get("_target_", "").startswith("fusion_tinting")
    made_of = [recipe.find(zoo).fingerprint() if zoo else None, source() if ours else None]
    return [*content, pools[-1], versions, *made_of]


@functools.cache
def source() -> str:
    """Return a hash of our core and FusionBench host (a zoo's fingerprint has its recipe already)."""
    folder, content = Path(fusion_tinting.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] not in ("_hydra", "mergekit", "mini", "reporting"):
            content.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return content.hexdigest()[:16]


def summary(plan: Plan, options: argparse.Namespace) -> dict:
    """Return everything that is known, asked for now or run before."""
    pretrained = plan.done(plan.pretrained)
    experts = {task: plan.done(overrides) for task, overrides in plan.experts.items()}
    scores = {task: 100 * run["report"][task]["accuracy"] for task, run in experts.items()}
    board_of = outcomes.Outcomes(scores, pretrained["report"]["model_info"]["all_params"])
    entries = [
        board_of.reference("pre-trained", board_of.accuracies(pretrained["report"])),
        board_of.reference("experts", scores),
    ]
    for name, row in plan.rows.items():
        for protocol in PROTOCOLS if row.data == UNLABELED else [None]:
            runs = {
                seed: plan.final(row, protocol, seed) for seed in range(plan.seeds if row.seeded else 1)
            }
            done = {seed: run for seed, overrides in runs.items() if (run := plan.done(overrides))}
            reasons = [reason for overrides in runs.values() if (reason := plan.run.failed(overrides))]
            entry = {"key": name, "protocol": protocol, "adapted_on": PROTOCOLS.get(protocol)}
            if done:
                entries.append(entry | board_of.row(row, done, plan.on_val(row)))
            elif reasons:
                entries.append(entry | {"name": row.title, "family": row.family, "failed": reasons[0]})
    return {
        "pool": options.pool, "tasks": plan.tasks, "zoo_seed": options.zoo_seed, "quick": plan.quick,
        "experts": scores, "rows": entries, "process_hours": plan.hours, "jobs": options.jobs,
        **about(plan.device),
    }  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """Reduce a quick board to one seed and protocol, and refuse rows that have no quick form."""
    if options.quick:
        options.seeds, options.split = 1, "inductive"
        if without := [name for name in options.methods or [] if ROWS[name].quick is None]:
            raise ValueError(f"{without} have no quick form")


def path(options: argparse.Namespace, _: dict) -> Path:
    """Return where the board goes."""
    return (options.work if options.quick else RESULTS) / f"{name_of(options)}.json"


def name_of(options: argparse.Namespace) -> str:
    """Return the board's name: the pool's, and the zoo seed where it is not the usual one."""
    return options.pool + (f"_zoo{options.zoo_seed}" if options.zoo_seed else "")


BENCHMARK = Benchmark(
    __doc__,
    measure,
    board.table,
    options={
        "--pool": {"default": "clip-mini_8", "help": "a model pool and task pool of this package"},
        "--methods": {"nargs": "+", "choices": ROWS, "help": "rows to run (default: all)"},
        "--split": {"choices": [*PROTOCOLS, "both"], "default": "both", "help": "protocols to run"},
        "--seeds": {"nargs": None, "default": 3, "help": "seeds 0, 1, … of the rows that have any"},
        "--zoo-seed": {"type": int, "help": "another build of a mini pool"},
        "--quick": {"help": "few rows and steps, one seed, inductive"},
        "--jobs": {},
        "--work": {"default": Path("outputs/leaderboard")},
    },
    path=path,
    page=board.page,
    draw=board_plots.write_all,
    check=check,
)

if __name__ == "__main__":
    BENCHMARK.main()
