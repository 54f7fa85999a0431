"""FusionBench programs in this process, on a micro zoo that all host tests share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from command import composed
from fusion_bench.scripts.cli import main
from PIL.Image import Image
from transformers import BatchFeature, CLIPProcessor

import fusion_tinting.fusionbench  # noqa: F401  (repairs FusionBench before the tests import more of it)


@pytest.fixture(scope="session", autouse=True)
def pictures_processed_once():
    """CLIP's processor is asked for every picture of every run; it answers one that it knows from memory.

    It takes a few milliseconds for each, a fifth of the time of a run with models as small as the tests'.
    """
    whole, known, settings = CLIPProcessor.__call__, {}, WeakKeyDictionary()

    def call(self, text=None, images=None, **options):
        one = images[0] if isinstance(images, list) and len(images) == 1 else images
        if text is not None or not isinstance(one, Image) or options != {"return_tensors": "pt"}:
            return whole(self, text=text, images=images, **options)
        if self.image_processor not in settings:
            settings[self.image_processor] = self.image_processor.to_json_string()
        key = (settings[self.image_processor], one.mode, one.size, one.tobytes())
        if key not in known:
            known[key] = whole(self, images=images, **options)["pixel_values"]
        return BatchFeature({"pixel_values": known[key].clone()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPProcessor, "__call__", call)
        yield


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

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")  # for its tables
        patch.setenv("TERM_COLOR_SCHEME", "dark")  # or it asks the terminal, which is captured
        module = "fusion_bench.programs.fabric_fusion_program"
        patch.setattr(f"{module}.get_hydra_output_dir", lambda: str(folder))
        yield run


@pytest.fixture
def fuse(cache, tmp_path):
    """Run FusionBench's program in the test's own folder, which is entered."""
    with program(tmp_path) as run:
        yield run
