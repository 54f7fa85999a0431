"""The hosts as programs to kill: `fusion_bench method=model_tinting` and `mergekit-tint learn`."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion_tinting.run.cache import cache_folder

from .kills import Program
from .results import seen

HOST_TESTS = Path(__file__).parents[1] / "host"


def programs(folder: Path) -> tuple[Program, ...]:
    """Import the hosts, make what they read, some of it in a folder, and return both."""
    sys.path[:0] = [str(HOST_TESTS), str(HOST_TESTS.parent)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import fusion_tinting.fusionbench  # noqa: F401  (repairs FusionBench before more of it is imported)

    return _fusion_bench(), _learn(folder)


def _fusion_bench() -> Program:
    from command import composed
    from fusion_bench.scripts.cli import main

    from fusion_tinting.mini import build

    build(recipe="clip-micro_3", progress=False)
    minis = cache_folder() / "mini"
    quiet = ("print_config=false", "print_function_call=false", "fabric.accelerator=cpu")
    method = ("method=model_tinting", "method.steps=12", "method.num_workers=0", "~taskpool")

    def run(folder: Path) -> Any:
        (folder / "cache").mkdir(exist_ok=True)
        if not (folder / "cache" / "mini").exists():
            (folder / "cache" / "mini").symlink_to(minis)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            module = "fusion_bench.programs.fabric_fusion_program"
            patch.setattr(f"{module}.get_hydra_output_dir", lambda: str(folder))
            paths = (f"path.log_dir={folder}", "path.work_dir=.", f"fabric.loggers.root_dir={folder}")
            pool, run_dir = "modelpool=clip-micro_3", f"method.run_dir={folder / 'run'}"
            model = main(composed(pool, *quiet, *method, *paths, run_dir))["merged_model"]
        return seen(model, torch.zeros(2, 3, 32, 32))

    return Program("fusion_bench", run, pictures=True)


def _learn(folder: Path) -> Program:
    from test_mergekit_learn import make_world
    from transformers import AutoModelForMaskedLM

    from fusion_tinting.mergekit.config import read
    from fusion_tinting.mergekit.learn import learn

    path = make_world(folder, "roberta", AutoModelForMaskedLM)

    def run(folder: Path) -> Any:
        model, _ = learn(read(path), folder / "run", progress=False)
        tokens = {"input_ids": torch.full((2, 5), 7), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
        return seen(model, tokens)

    return Program("mergekit-tint learn", run, pictures=True)
