"""Runs programs as a user would: in a process and a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import fusion_bench.scripts.cli  # noqa: F401  (our plugin acts where FusionBench is loaded)
import yaml
from fusion_bench.constants import PROJECT_ROOT_PATH
from hydra import compose, initialize_config_dir

STOCK = PROJECT_ROOT_PATH / "fusion_bench_config"

# The command that pip installed beside this interpreter.
FUSION_BENCH = str(Path(sys.executable).parent / "fusion_bench")


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run to the end; a failure shows what the program wrote."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


def composed(*overrides: str):
    """FusionBench's configuration with these overrides."""
    quick = patch.object(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    with quick, initialize_config_dir(str(STOCK), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))
