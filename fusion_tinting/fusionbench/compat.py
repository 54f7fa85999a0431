"""Repairs that FusionBench 0.2.33 needs, most of them beside transformers 5.

Each fills a gap and stands back where there is none, so that a repaired release of FusionBench or a
transformers that brings a name back is left alone. Nothing here imports transformers, which takes
seconds: a module is repaired at the moment somebody imports it.
"""

import sys
import typing
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

MODELING_CLIP = "transformers.models.clip.modeling_clip"


def apply() -> None:
    """Make the repairs; a second call changes nothing."""
    repair_typing()
    for name, repair in REPAIRS.items():
        if name in sys.modules:
            repair(sys.modules[name])
    if not any(isinstance(finder, RepairOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, RepairOnImport())


def repair_typing() -> None:
    """Add `typing.override` to Python 3.11, which the OpenCLIP and image pools import."""
    if sys.version_info < (3, 12) and not hasattr(typing, "override"):
        from typing_extensions import override

        typing.override = override


def repair_modeling_clip(module: ModuleType) -> None:
    """Give back `CLIPVisionTransformer`, which transformers 5 merged into `CLIPVisionModel`."""
    model = module.CLIPVisionModel

    # The CLIP task pool and the surgery wrapper import the old name, for isinstance checks.
    if not hasattr(module, "CLIPVisionTransformer"):
        module.CLIPVisionTransformer = model

        # The WEMoE methods walk model.vision_model.encoder.layers; that level is now the model
        # itself. A property and no submodule: parameters and saved tensors keep their names.
        model.vision_model = property(lambda self: self)


def repair_state_dict_arithmetic(module: ModuleType) -> None:
    """WEMoE adds a task vector (tensors) to a model (parameters): the check of equal types refuses it."""
    validate, torch = module._validate_state_dict_same_keys, module.torch

    def validate_values(state_dicts: list[dict]) -> None:
        validate(
            [{name: getattr(value, "data", value) for name, value in sd.items()} for sd in state_dicts]
        )

    try:
        validate([{"weight": torch.nn.Parameter(torch.zeros(1))}, {"weight": torch.zeros(1)}])
    except TypeError:
        module._validate_state_dict_same_keys = validate_values


def repair_clip_taskpool(module: ModuleType) -> None:
    """Activate the task of a `ModulatedModel`, such as EMR, in the CLIP task pool; twice does no harm."""
    pool = module.CLIPVisionModelTaskPool
    evaluate = pool._evaluate
    if evaluate.__module__ == __name__:
        return

    def evaluate_active(
        self: Any, classifier: Any, *args: Any, task_name: str | None = None, **kwargs: Any
    ) -> dict:
        from fusion_bench.models.modulator import ModulatedModel

        model = getattr(getattr(classifier, "clip_model", None), "vision_model", None)
        if isinstance(model, ModulatedModel):
            model.set_task(task_name)
        return evaluate(self, classifier, *args, task_name=task_name, **kwargs)

    pool._evaluate = evaluate_active


def repair_seq2seq_pool(module: ModuleType) -> None:
    """Let `load_tokenizer` call `instantiate`, as the other pools do, where it calls `isinstance`."""
    from fusion_bench.utils import instantiate

    pool = module.Seq2SeqLMPool

    def load_tokenizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._tokenizer is not None, "Tokenizer is not defined in the config"
        return instantiate(self._tokenizer, *args, **kwargs)

    try:
        pool.load_tokenizer(SimpleNamespace(_tokenizer={"_target_": "builtins.dict"}))
    except TypeError:
        pool.load_tokenizer = load_tokenizer


REPAIRS = {
    MODELING_CLIP: repair_modeling_clip,
    "fusion_bench.utils.state_dict_arithmetic": repair_state_dict_arithmetic,
    "fusion_bench.taskpool.clip_vision.taskpool": repair_clip_taskpool,
    "fusion_bench.modelpool.seq2seq_lm.modelpool": repair_seq2seq_pool,
}
"""Module -> what is done to it, now or when it is imported; a second time changes nothing."""


class RepairOnImport(MetaPathFinder):
    """Finds a module, as the import system would, and repairs it once it has been executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the specification of a module that will be repaired; None of any other."""
        if fullname not in REPAIRS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            REPAIRS[fullname](module)

        spec.loader.exec_module = exec_module
        return spec
