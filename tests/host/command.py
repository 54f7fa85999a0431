"""FusionBench's program in this process, which is faster than one of its own."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import yaml
from fusion_bench.constants import PROJECT_ROOT_PATH
from fusion_bench.scripts.cli import main  # our plugin acts where FusionBench is loaded
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from torch import nn

STOCK = PROJECT_ROOT_PATH / "fusion_bench_config"
GROUPS = ("method", "modelpool", "taskpool")

# The command that pip installed beside this interpreter.
FUSION_BENCH = str(Path(sys.executable).parent / "fusion_bench")


def composed(*overrides: str) -> DictConfig:
    """FusionBench's configuration with these overrides; its files are read once for each choice of them."""
    choices = tuple(override for override in overrides if override.lstrip("~+").split("=")[0] in GROUPS)
    config = deepcopy(chosen(choices))
    values = OverridesParser.create().parse_overrides([o for o in overrides if o not in choices])
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


@cache
def chosen(overrides: tuple[str, ...]) -> DictConfig:
    """FusionBench's configuration with these overrides alone."""
    quick = patch.object(yaml, "SafeLoader", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    with quick, initialize_config_dir(str(STOCK), version_base=None):
        return compose("fabric_model_fusion", overrides=list(overrides))


@contextmanager
def program(folder: Path) -> Iterator[Callable[..., dict]]:
    """Run FusionBench's program in a folder as its command does, faster: without a process of its own.

    Images are loaded by this process, unless `method.num_workers` says otherwise. What is given returns the
    program's result: `merged_model` and `report`.
    """

    def run(*overrides: str) -> dict:
        quiet = ("print_config=false", "print_function_call=false", "fabric.accelerator=cpu")
        paths = (f"path.log_dir={folder}", "path.work_dir=.", f"fabric.loggers.root_dir={folder}")
        pools = ("modelpool=clip-micro_3", "taskpool=clip-micro_3")
        tinting = any(override.startswith("method=model_tinting") for override in overrides)
        loading = ("method.num_workers=0",) if tinting else ()
        return main(composed(*pools, *quiet, *paths, *loading, *overrides))

    with pytest.MonkeyPatch.context() as changes:
        changes.chdir(folder)
        changes.setenv("COLUMNS", "200")  # for its tables
        changes.setenv("TERM_COLOR_SCHEME", "dark")  # or it asks the terminal, which is captured
        # Or it draws a frame around each call that it makes: `print_function_call=false` changes nothing.
        changes.setattr("fusion_bench.utils.instantiate_utils.PRINT_FUNCTION_CALL", False)
        module = "fusion_bench.programs.fabric_fusion_program"
        changes.setattr(f"{module}.get_hydra_output_dir", lambda: str(folder))
        yield run


@dataclass(frozen=True)
class Finished:
    """A run that several tests look at, which change nothing of it."""

    folder: Path
    report: dict
    model: nn.Module
    shown: str


def finished(folder: Path, *overrides: str) -> Finished:
    """Run FusionBench's program to its end."""
    with redirect_stdout(io.StringIO()) as shown, program(folder) as run:
        result = run(*overrides)
    return Finished(folder, result["report"], result["merged_model"], shown.getvalue())


def assert_streams_the_same(fuse: Callable, *given: str) -> None:
    """Adapt with experts in memory and with experts in their files: what is learned must be the same."""
    kept, streamed = (
        fuse(*given, "method.task_vectors.gradients=arriving", f"method.task_vectors.storage={storage}")[
            "merged_model"
        ]
        for storage in ("memory", "stream")
    )
    torch.testing.assert_close(kept.history.loss, streamed.history.loss, rtol=0, atol=1e-4)
    for name, row in kept.coefficients.items():
        torch.testing.assert_close(row, streamed.coefficients[name], rtol=0, atol=1e-4)
