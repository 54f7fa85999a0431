"""Shows Hydra where our YAML is, and repairs FusionBench before it builds a model pool."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath

PACKAGE = Path(__file__).resolve().parents[1]


def configs() -> Path:
    """Return the folder of our YAML: in the package when installed, beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def extend(search_path: ConfigSearchPath) -> None:
    """Append our folder, then FusionBench's own, to Hydra's search path."""
    from fusion_tinting.fusionbench import compat

    # Here, not in our algorithm: FusionBench builds the model pool before the method.
    compat.apply()

    # Appended, so that a user's file of the same name wins; `pkg://` would need our YAML inside
    # the package, which it is not in a checkout.
    search_path.append("fusion_tinting", f"file://{configs()}")

    # FusionBench takes a folder named ./config for its own and then finds nothing of its own.
    from fusion_bench.constants import PROJECT_ROOT_PATH

    for name in ("fusion_bench_config", "config"):  # installed, in a checkout
        stock = PROJECT_ROOT_PATH / name
        if (stock / "fabric_model_fusion.yaml").is_file():
            search_path.append("fusion_bench", f"file://{stock}")
            break
