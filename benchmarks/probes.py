"""Can a linear probe on the pre-trained model do a mini's tasks? Its score beside the fine-tuned expert's.

    python benchmarks/probes.py             # some minutes; three zoos
    python benchmarks/probes.py roberta-mini_4 --zoos 0

A probe is fitted to what a task's head is given, on the `train` split that the expert had, and scored on
`test`. Of texts, whose heads are given the state at <s>, a second one is fitted to the mean over tokens,
and the better counts. Scores are accuracies, of a regression Pearson's correlation. The heads of
`nyuv2-mini_3` are given a map: see `helpers/dense_probes.py`. Writes `benchmarks/results/probes.json`, and
a table in Markdown beside it.
"""

import argparse

import torch
from helpers import dense_probes
from helpers.averages import plus_minus, spread
from helpers.command import RESULTS, Benchmark, known_pools
from helpers.composed import accuracy, beside_the_expert, compose_run, labels_of, loaded
from torch import Tensor, nn

from fusion_tinting import predict
from fusion_tinting.families.sequence_classification import Features
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.reporting.tables import Metric, Table

POOLS = ("openclip-mini_3", "resnet-mini_3", "roberta-mini_4", "nyuv2-mini_3")
CLASSES, VALUES = Metric("accuracy", "accuracy %"), Metric("pearson", "Pearson %")
WEIGHT_DECAY = 1e-4


class Vectors(nn.Module):
    """The vectors (B, ways, D) that a probe can be fitted to, of what a head is given."""

    def forward(self, features: Tensor | Features) -> Tensor:
        """Return the vectors, (B, ways, D)."""
        if isinstance(features, Tensor):
            return features.flatten(1)[:, None]
        states, mask = features.output.last_hidden_state, features.inputs["attention_mask"][..., None]
        return torch.stack([states[:, 0], (states * mask).sum(1) / mask.sum(1)], dim=1)


def measure(options: argparse.Namespace) -> dict:
    """Return the results of the pools that are asked for, beside those that are known."""
    pools = known_pools(options.json)
    for pool in options.pools or POOLS:
        pools[pool] = summary({zoo: scores(pool, zoo) for zoo in options.zoos})
    return {"pools": pools}


def scores(pool: str, zoo: int) -> dict[str, dict[str, float]]:
    """Return task and metric -> scores on `test` of `probe` and `expert`, and the `share` that is kept."""
    if pool.startswith("nyuv2"):
        return dense_probes.scores(pool, zoo)
    family = loaded(compose_run(f"modelpool={pool}", f"modelpool.zoo_seed={zoo}"))
    return dict(of_task(family, task) for task in family.tasks)


def of_task(family: PoolFamily, task: str) -> tuple[str, dict[str, float]]:
    """Return a task with its metric, and the scores of its probe and of its expert."""
    inputs, labels = {}, {}
    for split in ("train", "test"):
        inputs[split] = family.unlabeled(task, split)
        labels[split] = labels_of(family, task, split)
    vectors = {split: predict(family.pretrained, Vectors(), inputs[split]) for split in inputs}
    probes = (
        probed(vectors["train"][:, way], labels["train"], vectors["test"][:, way])
        for way in range(vectors["train"].shape[1])
    )
    expert = predict(family.experts[task], family.heads[task], inputs["test"])
    metric = VALUES if labels["test"].is_floating_point() else CLASSES
    probe = max(score(outputs, labels["test"]) for outputs in probes)
    return f"{task}, {metric.title}", beside_the_expert(metric, probe, score(expert, labels["test"]))


def probed(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Return logits (N, classes), or values (N, 1), by a linear map that is fitted to other vectors.

    Args:
        known: the vectors that it is fitted to, (M, D).
        labels: their labels, (M,): classes, or numbers where they are floating. The cross-entropy or the
            squared error is minimized to convergence, with a little weight decay.
        asked: the vectors in question, (N, D).
    """
    shift, scale = known.mean(0), known.std(0).clamp_min(1e-6)
    known, asked = (
        torch.cat([(vectors - shift) / scale, torch.ones(len(vectors), 1)], dim=1)
        for vectors in (known, asked)
    )
    outputs = 1 if labels.is_floating_point() else int(labels.max()) + 1
    weight = torch.zeros(known.shape[1], outputs, requires_grad=True)
    lbfgs = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        lbfgs.zero_grad()
        total = misfit(known @ weight, labels) + WEIGHT_DECAY * weight.square().sum()
        total.backward()
        return total

    lbfgs.step(loss)
    return asked @ weight.detach()


def misfit(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the squared error of numbers, the cross-entropy of classes."""
    if labels.is_floating_point():
        return nn.functional.mse_loss(outputs[:, 0], labels)
    return nn.functional.cross_entropy(outputs, labels)


def score(outputs: Tensor, labels: Tensor) -> float:
    """Return the accuracy of logits, Pearson's correlation of values."""
    if labels.is_floating_point():
        return float(torch.corrcoef(torch.stack([outputs[:, 0], labels]))[0, 1])
    return accuracy(outputs, labels)


def summary(zoos: dict[int, dict[str, dict[str, float]]]) -> dict:
    """Return task -> `probe`, `expert` and `share`, over zoos."""
    tasks = {
        task: {name: spread(scores[task][name] for scores in zoos.values()) for name in row}
        for task, row in next(iter(zoos.values())).items()
    }
    return {"tasks": tasks, "by_zoo": zoos}


def table(outcome: dict) -> Table:
    """Return one row for each task, mean ± sd over zoos."""
    rows = []
    for pool, row in outcome["pools"].items():
        for task, values in row["tasks"].items():
            probe, expert, share = (plus_minus(values[name]) for name in ("probe", "expert", "share"))
            rows.append([f"`{pool}`", task, probe, expert, f"{share} %", len(row["by_zoo"])])
    return Table(["pool", "task", "linear probe", "expert", "share", "zoos"], rows, numeric=False)


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "pools": {"help": f"default: {', '.join(POOLS)}"},
        "--zoos": {},
        "--json": {"default": RESULTS / "probes.json"},
    },
)

if __name__ == "__main__":
    BENCHMARK.main()
