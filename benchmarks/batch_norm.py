"""What to do with batch-norm statistics when models are merged: the ways there are, on `resnet-mini_3`.

    python benchmarks/batch_norm.py         # some minutes

Accuracy on `test`, mean of the tasks, of Task Arithmetic at two λ and of a head tint that was adapted on
`val` without labels. Writes `benchmarks/results/batch_norm.json`, and a table in Markdown beside it.
"""

import argparse
from collections.abc import Iterator
from copy import deepcopy
from statistics import mean

import torch
from helpers.command import RESULTS, Benchmark
from helpers.composed import accuracy, compose_run, labels_of, loaded
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import fusion_tinting as ft
from fusion_tinting.families.batch_norm import MergedBatchNorm, restore_statistics
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.tinted_model import OneTask

LAMBDAS = (0.3, 0.4)
PER_BATCH, BATCHES = 32, 40
"""Images of each task in a batch that statistics are computed of, and the number of such batches."""


class World:
    """A pool of image classifiers, their inputs and labels."""

    def __init__(self, pool: str, zoo: int, steps: int):
        self.family = loaded(compose_run(f"modelpool={pool}", f"modelpool.zoo_seed={zoo}"))
        self.tasks, self.steps = self.family.tasks, steps
        self.inputs = {task: self.family.unlabeled(task, "val") for task in self.tasks}
        self.test = {
            task: (self.family.unlabeled(task, "test"), labels_of(self.family, task)) for task in self.tasks
        }
        # Of the experts as they are, whatever is done to statistics where they are merged.
        self.predictions = ft.predict_experts(
            self.family.experts, self.family.heads, self.inputs, progress=False
        )

    def scores(self, way: "Way") -> dict[str, float]:
        """Return the mean accuracy in percent of every model that has its statistics this way."""
        pretrained = way.changed(self.family.pretrained)
        way.prepare(self, pretrained)
        untrained = self.untrained(way, pretrained, layer=None)
        scores = {f"λ = {lam}": self.accuracy(untrained.remerged(lam)) for lam in LAMBDAS}
        settings = ft.Settings(sampler="all", steps=self.steps)
        tinted = self.untrained(way, pretrained)
        ft.adapt(tinted, self.inputs, self.predictions, settings, progress=False)
        way.finish(self, tinted)
        return {**scores, "tinted": self.accuracy(tinted)}

    def untrained(self, way: "Way", pretrained: nn.Module, layer: str | None = "head") -> ft.TintedModel:
        """Return where adaptation starts from these statistics."""
        experts = LoadedExperts(self.tasks, lambda task: way.expert(self.family.experts[task], pretrained))
        return ft.TintedModel.untrained(pretrained, experts, self.family.heads, layer)

    def accuracy(self, model: ft.TintedModel) -> float:
        """Return the mean accuracy over the tasks, in percent."""
        shares = [
            accuracy(ft.predict(OneTask(model, task), nn.Identity(), inputs), labels)
            for task, (inputs, labels) in self.test.items()
        ]
        return round(mean(100 * share for share in shares), 2)

    def mixed(self) -> Iterator[Tensor]:
        """Yield batches with images of every task."""
        places = torch.arange(PER_BATCH * BATCHES).split(PER_BATCH)
        each = [inputs.batches(rows % len(inputs) for rows in places) for inputs in self.inputs.values()]
        yield from map(torch.cat, zip(*each, strict=True))


class Way:
    """As the package does it: μ and log σ² are merged tensors."""

    def changed(self, encoder: nn.Module) -> nn.Module:
        """Return a copy of an encoder that has its statistics this way."""
        return deepcopy(encoder)

    def prepare(self, world: World, pretrained: nn.Module) -> None:
        """Change the pre-trained model's statistics before anything is merged."""

    def expert(self, encoder: nn.Module, pretrained: nn.Module) -> nn.Module:
        """Return a copy of an expert as it is merged around the changed pre-trained model."""
        return self.changed(encoder)

    def finish(self, world: World, tinted: ft.TintedModel) -> None:
        """Change the tinted model's statistics after adaptation."""


class FixedBatchNorm(nn.BatchNorm2d):
    """A batch norm of a class of its own, whose statistics `fusion_tinting` leaves as they are."""


class Pretrained(Way):
    """Statistics are buffers, and the pre-trained model's stay."""

    def changed(self, encoder: nn.Module) -> nn.Module:
        """Return a copy of an encoder with statistics that are not merged."""
        encoder = restore_statistics(deepcopy(encoder)).requires_grad_(False)
        for module in encoder.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = FixedBatchNorm
        return encoder

    def expert(self, encoder: nn.Module, pretrained: nn.Module) -> nn.Module:
        """Return a copy of an expert with the pre-trained model's statistics."""
        expert = self.changed(encoder)
        for name, buffer in expert.named_buffers():
            buffer.copy_(pretrained.get_buffer(name))
        return expert


class Average(Pretrained):
    """The mean of the experts' statistics."""

    def prepare(self, world: World, pretrained: nn.Module) -> None:
        """Put the mean into the pre-trained model."""
        experts = [self.changed(world.family.experts[task]) for task in world.tasks]
        for name, buffer in pretrained.named_buffers():
            buffer.copy_(sum(expert.get_buffer(name) for expert in experts) / len(experts))


class Recomputed(Pretrained):
    """Those of all tasks' images, in the model merged at the first λ; or, `again`, after adaptation too."""

    def __init__(self, again: bool = False):
        self.again = again

    def prepare(self, world: World, pretrained: nn.Module) -> None:
        """Put the statistics of the merged model into the pre-trained model."""
        merged = world.untrained(self, pretrained, layer=None).remerged(LAMBDAS[0]).encoder
        update_bn(world.mixed(), merged)
        for name, buffer in pretrained.named_buffers():
            buffer.copy_(merged.get_buffer(name))

    def finish(self, world: World, tinted: ft.TintedModel) -> None:
        """Recompute the statistics of the tinted model."""
        if self.again:
            update_bn(world.mixed(), tinted.encoder)
            tinted.eval()


class Variance(Way):
    """μ and σ² itself are merged tensors."""

    def changed(self, encoder: nn.Module) -> nn.Module:
        """Return a copy of an encoder with σ² in the place of log σ²."""
        encoder = deepcopy(encoder)
        for name, module in list(encoder.named_modules()):
            if isinstance(module, MergedBatchNorm):
                parent, _, own = name.rpartition(".")
                encoder.get_submodule(parent)._modules[own] = MergedVariance(module)
        return encoder


class MergedVariance(nn.Module):
    """As `MergedBatchNorm`, but σ² + ε is the parameter, kept positive where it is used."""

    def __init__(self, norm: MergedBatchNorm):
        super().__init__()
        self.weight, self.bias, self.running_mean = norm.weight, norm.bias, norm.running_mean
        self.variance = nn.Parameter(norm.log_variance.detach().exp(), requires_grad=False)
        self.eps = norm.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """Return normalized maps, (B, C, H, W)."""
        scale = self.weight * self.variance.clamp(min=self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), inputs, scale.view(-1, 1, 1))


WAYS = {
    "the pre-trained model's": Pretrained(),
    "the experts' average": Average(),
    f"recomputed at λ = {LAMBDAS[0]}": Recomputed(),
    "the same, and again after adaptation": Recomputed(again=True),
    "merged, σ² itself": Variance(),
    "merged, log σ² (ours)": Way(),
}


def measure(options: argparse.Namespace) -> dict:
    """Return the scores of every way."""
    world = World(options.pool, options.zoo, options.steps)
    rows = [{"statistics": name, **world.scores(way)} for name, way in WAYS.items()]
    return {"pool": options.pool, "zoo": options.zoo, "steps": options.steps, "rows": rows}


def table(outcome: dict) -> Table:
    """Return the table of the scores, a row for each way."""
    names = [name for name in outcome["rows"][0] if name != "statistics"]
    titles = [f"Task Arithmetic, {name}" if name.startswith("λ") else name for name in names]
    rows = [[row["statistics"], *(row[name] for name in names)] for row in outcome["rows"]]
    return Table(["statistics", *titles], rows, digits=".1f", numeric=False)


BENCHMARK = Benchmark(
    __doc__,
    measure,
    table,
    options={
        "--pool": {"default": "resnet-mini_3"},
        "--zoo": {"type": int, "default": 0, "help": "zoo seed"},
        "--steps": {"type": int, "default": 200, "help": "iterations of the tint"},
        "--json": {"default": RESULTS / "batch_norm.json"},
    },
)

if __name__ == "__main__":
    BENCHMARK.main()
