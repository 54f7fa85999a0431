"""The repairs of FusionBench 0.2.33 beside transformers 5."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shell import run

from fusion_tinting.fusionbench import compat


def python(code: str, cwd: Path) -> str:
    return run(sys.executable, "-c", code, cwd=cwd).stdout


def tiny_vision_model():
    compat.apply()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    size = {"hidden_size": 16, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    return CLIPVisionModel(CLIPVisionConfig(**size, num_hidden_layers=2, num_attention_heads=2)).eval()


def test_applying_imports_no_transformers(tmp_path):
    code = """
import sys
from fusion_tinting.fusionbench import compat
compat.apply()
print([name for name in sys.modules if name.split(".")[0] == "transformers"])
"""
    assert python(code, tmp_path).strip() == "[]"


def test_clip_is_repaired_when_it_was_imported_before(monkeypatch):
    from transformers.models.clip import modeling_clip

    monkeypatch.delattr(modeling_clip, "CLIPVisionTransformer", raising=False)
    monkeypatch.delattr(modeling_clip.CLIPVisionModel, "vision_model", raising=False)
    compat.apply()
    assert modeling_clip.CLIPVisionTransformer is modeling_clip.CLIPVisionModel
    assert isinstance(modeling_clip.CLIPVisionModel.vision_model, property)


def test_a_transformers_that_has_the_names_is_left_alone():
    class CLIPVisionModel:
        vision_model = "theirs"

    module = types.ModuleType("modeling_clip")
    module.CLIPVisionModel, module.CLIPVisionTransformer = CLIPVisionModel, object
    compat.repair_modeling_clip(module)
    assert module.CLIPVisionTransformer is object
    assert CLIPVisionModel.vision_model == "theirs"


def test_the_layers_are_found_where_the_wemoe_methods_look():
    model = tiny_vision_model()
    assert model.vision_model.encoder.layers is model.encoder.layers


def test_the_hubs_checkpoints_load_and_keep_their_names_when_saved(tmp_path):
    model = tiny_vision_model()
    hub = {f"vision_model.{name}": value for name, value in model.state_dict().items()}
    model.config.save_pretrained(tmp_path)
    save_file(hub, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded = type(model).from_pretrained(tmp_path)
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name

    loaded.save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == set(hub)


def test_pools_that_fail_without_the_repairs_import():
    compat.apply()
    from fusion_bench.modelpool import (  # noqa: F401
        ConvNextForImageClassificationPool,
        Dinov2ForImageClassificationPool,
        OpenCLIPVisionModelPool,
        ResNetForImageClassificationPool,
    )
    from fusion_bench.models.surgery.surgerymodelwrapper import SurgeryModelWrapper  # noqa: F401
    from fusion_bench.taskpool import CLIPVisionModelTaskPool  # noqa: F401


def test_a_task_vector_can_be_added_to_parameters():
    compat.apply()
    from fusion_bench.utils.state_dict_arithmetic import state_dict_add

    weight = torch.nn.Parameter(torch.ones(2))
    assert torch.equal(state_dict_add({"w": weight}, {"w": torch.ones(2)})["w"], torch.full((2,), 2.0))
    with pytest.raises(ValueError):
        state_dict_add({"w": weight}, {"v": weight})


def test_a_check_that_needs_no_repair_is_left_alone():
    module = types.ModuleType("state_dict_arithmetic")
    module.torch, module._validate_state_dict_same_keys = torch, print
    compat.repair_state_dict_arithmetic(module)
    assert module._validate_state_dict_same_keys is print


def test_the_clip_task_pool_activates_a_modulated_models_task():
    from fusion_bench.models.modulator import ModulatedModel

    class Pool:
        def _evaluate(self, classifier, test_loader, num_classes, task_name=None):
            return classifier.clip_model.vision_model.task

    class Model(ModulatedModel):
        task = None

        def set_task(self, task_name):
            self.task = task_name

    module = types.ModuleType("taskpool")
    module.CLIPVisionModelTaskPool = Pool
    for _ in range(2):
        compat.repair_clip_taskpool(module)
    model = Model(torch.nn.Identity(), {})
    classifier = types.SimpleNamespace(clip_model=types.SimpleNamespace(vision_model=model))
    assert Pool()._evaluate(classifier, None, 2, task_name="mnist") == "mnist"


def test_the_seq2seq_pool_loads_its_tokenizer_and_one_that_does_is_left_alone():
    from fusion_bench.modelpool import Seq2SeqLMPool

    tokenizer = {"_target_": "builtins.dict", "vocab": 3}
    pool = Seq2SeqLMPool({"_pretrained_": {"_target_": "builtins.dict"}}, tokenizer=tokenizer)
    assert pool.load_tokenizer(unk=2) == {"vocab": 3, "unk": 2}

    class Repaired:
        def load_tokenizer(self):
            return self._tokenizer

    module, theirs = types.ModuleType("modelpool"), Repaired.load_tokenizer
    module.Seq2SeqLMPool = Repaired
    compat.repair_seq2seq_pool(module)
    assert Repaired.load_tokenizer is theirs


def test_emr_and_wemoe_run(fuse):
    assert "accuracy" in fuse("method=emr_merging/emr_merging")["report"]["average"]
    moe = ("method=wemoe/weight_ensembling_moe", "method.name=clip_weight_ensembling_moe")
    assert "accuracy" in fuse(*moe, "method.max_steps=1", "method.num_workers=0")["report"]["average"]
