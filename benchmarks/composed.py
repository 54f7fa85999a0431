"""FusionBench's configuration as its command composes it, and a model pool with its models and labels."""

import fusion_bench.scripts.cli  # noqa: F401  (our search-path plugin acts where FusionBench is loaded)
import torch
from fusion_bench import instantiate
from fusion_bench.constants import PROJECT_ROOT_PATH
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from fusion_tinting.fusionbench.pools import PoolFamily, family_of
from fusion_tinting.reporting.tables import Metric

STOCK = PROJECT_ROOT_PATH / "fusion_bench_config"


def compose_run(*overrides: str) -> DictConfig:
    """What the command makes of these overrides."""
    with initialize_config_dir(str(STOCK), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


def loaded(config: DictConfig) -> PoolFamily:
    """The family of a configuration's model pool, with its models."""
    family = family_of(instantiate(config.modelpool))
    family.check()
    family.load()
    return family


def labels_of(family: PoolFamily, task: str, split: str = "test") -> Tensor:
    """A task's labels, (N,), of a pool with a column of that name."""
    return torch.as_tensor(family.dataset(task, split).with_format(None)["label"][:])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Of logits (N, classes), as a share."""
    return float((outputs.argmax(1) == labels).float().mean())


def beside_the_expert(metric: Metric, probe: float, expert: float) -> dict[str, float]:
    """The scores of a probe and of an expert as they are shown, and the share that the probe keeps."""
    shown = {"probe": metric.scale * probe, "expert": metric.scale * expert}
    return shown | {"share": metric.share(probe, expert)}
