"""Repairs that FusionBench 0.2.33 needs beside transformers 5.

Each fills a gap and stands back where there is none, so that a repaired release of FusionBench or a
transformers that brings a name back is left alone. Nothing here imports transformers, which takes
seconds: its CLIP module is repaired at the moment somebody imports it.
"""

import sys
import typing
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODELING_CLIP = "transformers.models.clip.modeling_clip"


def apply() -> None:
    """Make the repairs; a second call changes nothing."""
    repair_typing()
    if MODELING_CLIP in sys.modules:
        repair_modeling_clip(sys.modules[MODELING_CLIP])
    elif not any(isinstance(finder, RepairOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, RepairOnImport())


def repair_typing() -> None:
    """Python 3.11: the OpenCLIP, ResNet, ConvNeXt and DINOv2 pools import `typing.override`."""
    if sys.version_info < (3, 12) and not hasattr(typing, "override"):
        from typing_extensions import override

        typing.override = override


def repair_modeling_clip(module: ModuleType) -> None:
    """transformers 5 merged `CLIPVisionTransformer` into `CLIPVisionModel`."""
    model = module.CLIPVisionModel

    # The CLIP task pool and the surgery wrapper import the old name, for isinstance checks.
    if not hasattr(module, "CLIPVisionTransformer"):
        module.CLIPVisionTransformer = model

        # The WEMoE methods walk model.vision_model.encoder.layers; that level is now the model
        # itself. A property and no submodule: parameters and saved tensors keep their names.
        model.vision_model = property(lambda self: self)


class RepairOnImport(MetaPathFinder):
    """Finds one module, as the import system would, and repairs it once it has been executed."""

    def find_spec(self, fullname, path, target=None) -> ModuleSpec | None:
        if fullname != MODELING_CLIP:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            repair_modeling_clip(module)

        spec.loader.exec_module = exec_module
        return spec
