"""FusionBench programs in this process, on a micro zoo that all host tests share."""

import pytest
from command import composed
from fusion_bench.scripts.cli import main

import fusion_tinting.fusionbench  # noqa: F401  (repairs FusionBench before the tests import more of it)


@pytest.fixture
def fuse(cache, tmp_path, monkeypatch):
    """Run FusionBench's program as its command does, faster: without a process of its own.

    Images are loaded by this process, unless `method.num_workers` says otherwise. Returns the program's
    result: `merged_model` and `report`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # for its tables
    monkeypatch.setenv("TERM_COLOR_SCHEME", "dark")  # or it asks the terminal, which is captured
    module = "fusion_bench.programs.fabric_fusion_program"
    monkeypatch.setattr(f"{module}.get_hydra_output_dir", lambda: str(tmp_path))

    def run(*overrides: str) -> dict:
        quiet = ("print_config=false", "print_function_call=false", "fabric.accelerator=cpu")
        paths = (f"path.log_dir={tmp_path}", "path.work_dir=.", f"fabric.loggers.root_dir={tmp_path}")
        pools = ("modelpool=clip-micro_3", "taskpool=clip-micro_3")
        tinting = any(override.startswith("method=model_tinting") for override in overrides)
        loading = ("method.num_workers=0",) if tinting else ()
        return main(composed(*pools, *quiet, *paths, *loading, *overrides))

    return run
