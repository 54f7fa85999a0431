"""Can a linear probe on the pre-trained model do a mini's tasks? Its score beside the fine-tuned expert's.

    python benchmarks/probes.py             # some minutes; three zoos
    python benchmarks/probes.py roberta-mini_4 --zoos 0

A probe is fitted to what a task's head is given, on the `train` split that the expert had, and scored on
`test`. Of texts, whose heads are given the state at <s>, a second one is fitted to the mean over tokens,
and the better counts. Scores are accuracies, of a regression Pearson's correlation. The heads of
`nyuv2-mini_3` are given a map: see `dense_probes.py`. Writes `benchmarks/results/probes.json`, and a table
in Markdown beside it.
"""

import argparse
from pathlib import Path

import dense_probes
import torch
from common import RESULTS, about, save
from composed import accuracy, beside_the_expert, compose_run, labels_of, loaded
from runs import shown, spread
from torch import Tensor, nn

from fusion_tinting import predict
from fusion_tinting.families.sequence_classification import Features
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.reporting.tables import Metric
from fusion_tinting.run.files import read_json

POOLS = ("openclip-mini_3", "resnet-mini_3", "roberta-mini_4", "nyuv2-mini_3")
CLASSES, VALUES = Metric("accuracy", "accuracy %"), Metric("pearson", "Pearson %")
WEIGHT_DECAY = 1e-4


class Vectors(nn.Module):
    """What a head is given -> the vectors (B, ways, D) that a probe can be fitted to."""

    def forward(self, features: Tensor | Features) -> Tensor:
        if isinstance(features, Tensor):
            return features.flatten(1)[:, None]
        states, mask = features.output.last_hidden_state, features.inputs["attention_mask"][..., None]
        return torch.stack([states[:, 0], (states * mask).sum(1) / mask.sum(1)], dim=1)


def main() -> None:
    options = parse()
    found = read_json(options.json) if options.json.is_file() else {"pools": {}}
    for pool in options.pools or POOLS:
        found["pools"][pool] = summary({zoo: scores(pool, zoo) for zoo in options.zoos})
    found |= {"command": "python benchmarks/probes.py", **about()}
    save(options.json, found)
    options.json.with_suffix(".md").write_text(table(found))
    print(table(found))


def scores(pool: str, zoo: int) -> dict[str, dict[str, float]]:
    """Task and metric -> the scores on `test` of `probe` and `expert`, and the `share` that is kept."""
    if pool.startswith("nyuv2"):
        return dense_probes.scores(pool, zoo)
    family = loaded(compose_run(f"modelpool={pool}", f"modelpool.zoo_seed={zoo}"))
    return dict(of_task(family, task) for task in family.tasks)


def of_task(family: PoolFamily, task: str) -> tuple[str, dict[str, float]]:
    """A task with its metric, and the scores of its probe and of its expert."""
    inputs, labels = {}, {}
    for split in ("train", "test"):
        inputs[split] = family.unlabeled(task, split)
        labels[split] = labels_of(family, task, split)
    vectors = {split: predict(family.pretrained, Vectors(), inputs[split]) for split in inputs}
    probes = (
        probed(vectors["train"][:, way], labels["train"], vectors["test"][:, way])
        for way in range(vectors["train"].shape[1])
    )
    told = predict(family.experts[task], family.heads[task], inputs["test"])
    metric = VALUES if labels["test"].is_floating_point() else CLASSES
    probe = max(score(outputs, labels["test"]) for outputs in probes)
    return f"{task}, {metric.title}", beside_the_expert(metric, probe, score(told, labels["test"]))


def probed(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Logits (N, classes), or values (N, 1), that a linear map fitted to other vectors gives.

    Args:
        known: the vectors that it is fitted to, (M, D).
        labels: theirs, (M,): classes, or numbers where they are floating. It minimises the cross-entropy or
            the squared error, with a little weight decay, to convergence.
        asked: the vectors (N, D).
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
        found = misfit(known @ weight, labels) + WEIGHT_DECAY * weight.square().sum()
        found.backward()
        return found

    lbfgs.step(loss)
    return asked @ weight.detach()


def misfit(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared error of numbers, cross-entropy of classes."""
    if labels.is_floating_point():
        return nn.functional.mse_loss(outputs[:, 0], labels)
    return nn.functional.cross_entropy(outputs, labels)


def score(outputs: Tensor, labels: Tensor) -> float:
    """Accuracy of logits, Pearson's correlation of values."""
    if labels.is_floating_point():
        return float(torch.corrcoef(torch.stack([outputs[:, 0], labels]))[0, 1])
    return accuracy(outputs, labels)


def summary(zoos: dict[int, dict[str, dict[str, float]]]) -> dict:
    """Task -> `probe`, `expert` and `share`, over zoos."""
    found = {
        task: {name: spread(scores[task][name] for scores in zoos.values()) for name in row}
        for task, row in next(iter(zoos.values())).items()
    }
    return {"tasks": found, "by_zoo": zoos}


def table(found: dict) -> str:
    """One line for each task, mean ± sd over zoos."""
    lines = ["| pool | task | linear probe | expert | share | zoos |", "|---|---|---|---|---|---|"]
    for pool, row in found["pools"].items():
        for task, values in row["tasks"].items():
            cells = " | ".join(shown(values[name]) for name in ("probe", "expert", "share"))
            lines.append(f"| `{pool}` | {task} | {cells} % | {len(row['by_zoo'])} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pools", nargs="*", help=f"default: {', '.join(POOLS)}")
    parser.add_argument("--zoos", type=int, nargs="+", default=[0, 1, 2], help="zoo seeds")
    parser.add_argument("--json", type=Path, default=RESULTS / "probes.json", help="where results go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
