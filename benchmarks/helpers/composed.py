"""FusionBench's configuration as its command composes it, and a model pool's models, inputs and labels."""

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
    """Return the configuration that the command composes from these overrides."""
    with initialize_config_dir(str(STOCK), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


def loaded(config: DictConfig) -> PoolFamily:
    """Return the family of a configuration's model pool, with its models loaded."""
    family = family_of(instantiate(config.modelpool))
    family.check()
    family.load()
    return family


def labels_of(family: PoolFamily, task: str, split: str = "test") -> Tensor:
    """Return the labels of a task, (N,), of a pool whose data have a column `label`."""
    return torch.as_tensor(family.dataset(task, split).with_format(None)["label"][:])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Return the share of logits (N, classes) whose largest is that of the label (N,)."""
    return float((outputs.argmax(1) == labels).float().mean())


def beside_the_expert(metric: Metric, probe: float, expert: float) -> dict[str, float]:
    """Return the scores of a `probe` and an `expert` as they are shown, and the `share` that is kept."""
    scores = {"probe": metric.scale * probe, "expert": metric.scale * expert}
    return scores | {"share": metric.share(probe, expert)}
