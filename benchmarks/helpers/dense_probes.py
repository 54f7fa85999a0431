"""Linear probes of maps, for `probes.py`: a 1×1 convolution of the pre-trained encoder's output."""

import torch
from fusion_bench.metrics.nyuv2.loss import loss_fn
from torch import Tensor, nn
from torch.utils.data import default_collate

from fusion_tinting import predict
from fusion_tinting.families.dense import DenseHead
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.taskpools.nyuv2 import METRIC, measure_of
from fusion_tinting.mini import load_dataset
from fusion_tinting.mini.training import Training, fit
from helpers.composed import beside_the_expert, compose_run, loaded

STEPS, BATCH, LR = 600, 32, 3e-2
"""Iterations, batch size and highest learning rate of a probe's fit."""


def scores(pool: str, zoo: int) -> dict[str, dict[str, float]]:
    """Return task and metric -> scores of `probe` and `expert`, and the `share` that the probe keeps."""
    family = loaded(compose_run(f"modelpool={pool}", f"modelpool.zoo_seed={zoo}"))
    return {f"{task}, {METRIC[task].title}": _of_task(family, pool, zoo, task) for task in family.tasks}


def _of_task(family: PoolFamily, pool: str, zoo: int, task: str) -> dict[str, float]:
    inputs = {split: family.unlabeled(task, split) for split in ("train", "test")}
    targets = {split: default_collate(list(load_dataset(task, split, zoo, pool)))[1] for split in inputs}
    maps = {split: predict(family.pretrained, nn.Identity(), inputs[split]) for split in inputs}
    expert = predict(family.experts[task], family.heads[task], inputs["test"])
    probe = fitted(task, maps["train"], targets["train"], channels=expert.shape[1])
    scored = (_score(task, outputs, targets["test"]) for outputs in (probe(maps["test"]), expert))
    return beside_the_expert(METRIC[task], *scored)


def fitted(task: str, maps: Tensor, targets: Tensor, channels: int) -> nn.Module:
    """Return a probe, fitted by the loss that the experts were trained with.

    Args:
        task: `segmentation`, `depth` or `normal`.
        maps: (N, F, h, w); each feature is standardized first.
        targets: (N, H, W), or (N, C, H, W).
        channels: the number of output channels.
    """
    torch.manual_seed(0)
    shift, scale = maps.mean((0, 2, 3)), maps.std((0, 2, 3)).clamp_min(1e-6)
    standard = nn.BatchNorm2d(maps.shape[1], eps=0, affine=False).eval()
    standard.running_mean, standard.running_var = shift, scale**2
    probe = DenseHead(nn.Sequential(standard, nn.Conv2d(maps.shape[1], channels, 1)), targets.shape[-2:])

    def loss() -> Tensor:
        rows = torch.randint(len(maps), (BATCH,))
        return loss_fn[task](probe(maps[rows]), targets[rows])

    fit(loss, probe.parameters(), Training(STEPS, LR, weight_decay=0))
    return probe.requires_grad_(False)


def _score(task: str, outputs: Tensor, targets: Tensor) -> float:
    measure = measure_of(task, outputs.shape[1])
    measure.update(outputs, targets)
    values = dict(zip(measure.metric_names, measure.compute(), strict=True))
    return float(values[METRIC[task].key])
