"""FusionBench's configuration as its command composes it."""

import fusion_bench.scripts.cli  # noqa: F401  (our search-path plugin acts where FusionBench is loaded)
from fusion_bench.constants import PROJECT_ROOT_PATH
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

STOCK = PROJECT_ROOT_PATH / "fusion_bench_config"


def compose_run(*overrides: str) -> DictConfig:
    """What the command makes of these overrides."""
    with initialize_config_dir(str(STOCK), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))
