"""The leaderboard's entry of a method, made of the reports of its runs."""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from fusion_tinting.run.files import read_tensors
from helpers.averages import spread
from helpers.rows import TRAIN, Row

EXAMPLES = ("num_regmean_examples", "num_fisher_examples")


class Outcomes:
    """Makes entries; each run is its `report`, `cost`, `folder` and composed `method`.

    Args:
        experts: task -> accuracy % of its expert, the denominators.
        pretrained: parameters of the pre-trained model, as FusionBench counts them.
    """

    def __init__(self, experts: dict[str, float], pretrained: int):
        self.experts_accuracy, self.pretrained = experts, pretrained

    def row(self, row: Row, runs: dict[int, dict], on_val: dict[float, float]) -> dict:
        """Return a method's entry.

        Args:
            row: the method.
            runs: seed -> run.
            on_val: λ -> accuracy on `val`, on which the choice of λ rests; empty if it is not chosen so.
        """
        first = next(iter(runs.values()))
        reports = {
            seed: run["report"][row.part] if row.part else run["report"] for seed, run in runs.items()
        }
        scored = {seed: self.accuracies(report) for seed, report in reports.items()}
        entry = {
            "name": row.title, "family": row.family, "data": row.data, **self.scores(scored),
            **costs(runs.values()), **budget(first["method"]),
            "lam": chosen(on_val) if row.tuned else row.lam,
            "extra_parameters_per_task": self.extra(first, reports[next(iter(runs))]),
            "task_identity": row.task_identity, "overrides": list(row.overrides), "notes": row.notes,
            "runs": [self.run(seed, run, scored[seed]) for seed, run in runs.items()],
        }  # fmt: skip
        if row.data == TRAIN:
            entry["adapted_on"] = "train"
        return entry | ({"on_val": on_val} if row.tuned else {})

    def reference(self, name: str, scored: dict[str, float]) -> dict:
        """Return the entry of models that are not merged."""
        return {"key": name, "name": name, "family": "reference", **self.scores({0: scored})}

    def accuracies(self, report: dict) -> dict[str, float]:
        """Return task -> accuracy % of a report."""
        return {task: 100 * report[task]["accuracy"] for task in self.experts_accuracy}

    def scores(self, by_seed: dict[int, dict[str, float]]) -> dict:
        """Return averages over tasks, with their deviation over seeds; shares are of the pool's experts."""
        tasks = {task: mean(scored[task] for scored in by_seed.values()) for task in self.experts_accuracy}
        worst = min(tasks, key=tasks.get)
        return {
            "seeds": list(by_seed),
            "accuracy": spread(mean(scored.values()) for scored in by_seed.values()),
            "share_of_experts": spread(self.share(scored) for scored in by_seed.values()),
            "worst_task": {"task": worst, "accuracy": round(tasks[worst], 2)},
            "per_task": {task: round(value, 2) for task, value in tasks.items()},
        }

    def share(self, scored: dict[str, float]) -> float:
        """Return the mean over tasks of accuracy / expert's accuracy, in percent."""
        return mean(100 * scored[task] / expert for task, expert in self.experts_accuracy.items())

    def extra(self, run: dict, report: dict) -> int:
        """Return the numbers stored beyond one encoder, per task; a tint is counted whole, a head too."""
        tints = sorted(Path(run["folder"]).glob("run/tints/*.safetensors"))
        if tints:
            beyond = sum(tensor.numel() for path in tints for tensor in read_tensors(path)[0].values())
        else:
            beyond = report["model_info"]["all_params"] - self.pretrained
        return round(beyond / len(self.experts_accuracy))

    def run(self, seed: int, run: dict, scored: dict[str, float]) -> dict:
        """Return one run, of which the averages are made."""
        return {"seed": seed, "folder": run["folder"].name, "per_task": scored, **run["cost"]}


def costs(runs: Iterable[dict]) -> dict:
    """Return seconds of `method.run` and peak memory of the whole process.

    The seconds are those of the fastest run, for other work on a machine only adds to them.
    """
    each = [run["cost"] for run in runs]
    seconds = [cost["method_seconds"] for cost in each if cost["method_seconds"] is not None]
    return {
        "adaptation_seconds": min(seconds, default=None),
        "peak_memory_mb": spread(cost["peak_memory_mb"] for cost in each),
    }


def budget(method: dict) -> dict:
    """Return steps, and images drawn for them per task, by the method's configuration."""
    steps = method.get("max_steps", method.get("steps", method.get("iter_num")))
    if "surgery_steps" in method:
        steps += method["surgery_steps"]
    images = next((method[name] for name in EXAMPLES if name in method), None)
    if steps is not None and "batch_size" in method:
        images = steps * method["batch_size"]
    return {"steps": steps, "images_per_task": images}


def chosen(on_val: dict[float, float]) -> str:
    """Return the text for a λ that was chosen by `val` labels."""
    best = max(on_val, key=on_val.get)
    return f"{best}, of {', '.join(map(str, on_val))} by `val` labels"
