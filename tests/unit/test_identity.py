"""When a run is the same: what changes nothing is recognized, what changes anything is refused."""

import json
import shutil
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from types import MethodType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from world import TASKS, Encoder, World, make_world

import fusion_tinting as ft
from fusion_tinting.method.content import value_hash

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore:The buffer `last"),  # which changes it on purpose
]

SHORT = {"steps": 1, "layer": "stem"}


def tint(world: World, run_dir: Path, **settings) -> bool:
    """Whether the run was trained now, and not found finished."""
    steps = []
    world.tint(run_dir=run_dir, on_step=lambda *_: steps.append(1), **settings)
    return bool(steps)


def recognized(world: World, run_dir: Path, **settings) -> None:
    ft.TintedModel.load(run_dir, **world.models())
    assert not tint(world, run_dir, **settings)
    (run_dir / "tinting.json").unlink()
    assert not tint(world, run_dir, **settings)  # the checkpoint is of the last iteration


def refused(message: str, world: World, run_dir: Path, **settings) -> None:
    with pytest.raises(ValueError, match=message):
        ft.TintedModel.load(run_dir, **world.models())
    with pytest.raises(ValueError, match=message):
        tint(world, run_dir, **settings)
    (run_dir / "tinting.json").unlink()
    with pytest.raises(ValueError, match=message):
        tint(world, run_dir, **settings)


class Scale(nn.Module):
    """Multiplies by what the test is about."""

    def __init__(self, **attributes):
        super().__init__()
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("not_kept", torch.ones(1), persistent=False)
        self.frozen = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)
        self.scale, self.options, self.unregistered = (
            1.0,
            {"dtype": torch.float32, "by": [1, (2,)]},
            [nn.ReLU()],
        )

    def forward(self, x):
        return x * self.scale * self.kept * self.not_kept * self.frozen


class Scaled(Encoder):
    def __init__(self):
        super().__init__()
        self.last = Scale()

    def forward(self, x):
        return self.last(super().forward(x))


def scaled_world() -> World:
    world = make_world(TASKS[:2])
    for name, encoder in {"": world.pretrained, **world.experts}.items():
        scaled = Scaled()
        scaled.load_state_dict(encoder.state_dict(), strict=False)
        if name:
            world.experts[name] = scaled
        else:
            world.pretrained = scaled
    world.heads = {task: nn.Sequential(Scale(), head) for task, head in world.heads.items()}
    return world


def doubled(module, inputs, output=None):
    return inputs[0] * 2 if output is None else output * 2


def edited(module, x):
    return x * 3


def set_forward(factor):
    def change(scale):
        scale.forward = MethodType(lambda scale, x: x * factor, scale)

    return change


CHANGES = {
    "a buffer": lambda scale: scale.kept.mul_(2),
    "a buffer that is not saved": lambda scale: scale.not_kept.mul_(2),
    "an integer parameter": lambda scale: scale.frozen.data.mul_(2),
    "a number": lambda scale: setattr(scale, "scale", 2.0),
    "an attribute deep in others": lambda scale: scale.options["by"].append(torch.float16),
    "a new attribute": lambda scale: setattr(scale, "activation", torch.tanh),
    "a module that is not registered": lambda scale: setattr(
        scale, "unregistered", [nn.ReLU(inplace=True)]
    ),
    "a forward hook": lambda scale: scale.register_forward_hook(doubled),
    "a hook before forward": lambda scale: scale.register_forward_pre_hook(doubled),
    "a forward of its own": set_forward(2),
    "a method for forward": lambda scale: setattr(scale, "forward", MethodType(edited, scale)),
    "another class": lambda scale: setattr(scale, "__class__", type("Other", (Scale,), {})),
}


def scales(world: World, place: str) -> list[nn.Module]:
    encoders = [world.pretrained, *world.experts.values()]
    return {
        "all encoders": [encoder.last for encoder in encoders],
        "an expert": [world.experts["dogs"].last],
        "a head": [world.heads["dogs"][0]],
    }[place]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of a scaled world as it comes."""
    folder = tmp_path_factory.mktemp("scaled")
    scaled_world().tint(run_dir=folder, **SHORT)
    return folder


PLACES = ("all encoders", "an expert", "a head")
CHANGED = [*zip(CHANGES, cycle(PLACES)), *(("a number", place) for place in PLACES)]


@pytest.mark.parametrize(("change", "place"), dict.fromkeys(CHANGED))
def test_models_are_compared_whole(change, place, finished, tmp_path):
    world = scaled_world()
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for scale in scales(world, place):
        CHANGES[change](scale)
    # which cannot be merged
    alone = r"|expert `dogs` has (another|the hooks|`scale`|the class)|dogs`: With λ = 1"
    refused(rf"contents\.|another head of `dogs`|heads\.dogs{alone}", world, tmp_path, **SHORT)


@pytest.mark.parametrize("change", [None, *CHANGES.values()], ids=["nothing", *CHANGES.keys()])
def test_equal_models_are_recognized(change, tmp_path):
    worlds = [scaled_world(), scaled_world()]
    for scale in [
        s for world in worlds for place in ("all encoders", "a head") for s in scales(world, place)
    ]:
        if change is not None:
            change(scale)
    for model in worlds[1].experts.values():
        model.train().requires_grad_(False)  # which is how it was used, and not what it is
    worlds[0].tint(run_dir=tmp_path, **SHORT)
    recognized(worlds[1], tmp_path, **SHORT)


def test_another_factor_in_the_same_code_is_another_forward(tmp_path):
    one, other = scaled_world(), scaled_world()
    for world, factor in ((one, 2), (other, 3)):
        for scale in scales(world, "all encoders"):
            set_forward(factor)(scale)
    one.tint(run_dir=tmp_path, **SHORT)
    with pytest.raises(ValueError, match=r"contents\.models\.cats is .*`forward` of it"):
        other.tint(run_dir=tmp_path, **SHORT)


@pytest.mark.parametrize("kind", [Scale, Encoder], ids=["heads", "encoders"])
def test_a_class_whose_code_changed_answers_otherwise(kind, finished, tmp_path, monkeypatch):
    world = scaled_world()
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(kind, "forward", rescaled(kind.forward))
    refused(r"answer the same input otherwise|contents\.", world, tmp_path, **SHORT)


def rescaled(before):
    namespace = {"before": before}
    exec("def forward(self, x):\n    return before(self, x) * 1.5", namespace)
    namespace["forward"].__qualname__ = before.__qualname__
    return namespace["forward"]


HASHES = """
import sys
sys.path.insert(0, {folder!r})
from test_identity import scaled_world, CHANGES, value_hash
for change in CHANGES.values():
    world = scaled_world()
    change(world.pretrained.last)
    print(value_hash(world.pretrained))
"""


@pytest.mark.long
def test_hashes_are_the_same_in_another_process():
    code = HASHES.format(folder=str(Path(__file__).parent))
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    here = []
    for change in CHANGES.values():
        world = scaled_world()
        change(world.pretrained.last)
        here.append(value_hash(world.pretrained))
    assert told == here
    assert len(set(here)) == len(here)


SAME = [
    ({}, {"init": dict.fromkeys(TASKS, 0.3)}),
    ({"lr": 0.01}, {"lr_coefficients": 1e-2, "lr_tints": 0.01}),
    ({"objective": "soft"}, {"objective": dict.fromkeys(TASKS, "soft")}),
    ({"objective": "l1", "sampler": "all"}, {"objective": ft.objectives.l1, "sampler": ft.SAMPLERS["all"]}),
    ({"sampler": "top_confidence"}, {"sampler": "top_confidence:0.50"}),
    ({"layer": "block:-1"}, {"layer": "blocks.2"}),
    ({"task_vectors": {"storage": "mmap"}}, {}),
    (
        {"task_vectors": {"pretraining": "different"}},
        {"task_vectors": {"storage": "memory", "dtype": "fp32"}},
    ),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=lambda settings: "-".join(settings) or "none")
def test_settings_that_mean_the_same_are_the_same_run(one, other, tmp_path):
    assert tint(make_world(), tmp_path, steps=1, **one)
    recognized(make_world(), tmp_path, steps=1, **other)


DIFFERENT = [
    ({}, {"init": {**dict.fromkeys(TASKS, 0.3), "dogs": 0.2}}),
    ({}, {"lr_tints": 0.02}),
    ({"objective": "soft"}, {"objective": {**dict.fromkeys(TASKS, "soft"), "dogs": "hard"}}),
    ({"sampler": "top_confidence"}, {"sampler": "top_confidence:0.6"}),
    ({"layer": "block:-1"}, {"layer": "block:0"}),
    ({}, {"task_vectors": {"dtype": "fp16"}}),
    ({"steps": 3, "layer": "auto"}, {"steps": 3, "layer": "head"}),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=lambda settings: "-".join(settings) or "none")
def test_settings_that_mean_something_else_are_another_run(one, other, tmp_path):
    tint(make_world(), tmp_path, **{"steps": 1, **one})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"another run: settings\."):
            tint(make_world(), tmp_path, **{"steps": 1, **other})
        (tmp_path / "tinting.json").unlink(missing_ok=True)


class Half(ft.Processes):
    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16)


def test_models_of_bfloat16_are_another_run_than_passes_in_it(tmp_path):
    def half():
        world = make_world()
        for model in (world.pretrained, *world.experts.values(), *world.heads.values()):
            model.bfloat16()
        return world

    tint(half(), tmp_path, steps=1)
    full = half()
    for model in (full.pretrained, *full.experts.values(), *full.heads.values()):
        model.float()  # of the same values
    with pytest.raises(
        ValueError, match=r"settings\.precision is 'bfloat16-true' there and 'bfloat16' here"
    ):
        tint(full, tmp_path, steps=1, processes=Half())


def test_precision_is_part_of_a_run(tmp_path):
    tint(make_world(), tmp_path, steps=1, processes=Half())
    assert json.loads((tmp_path / "tinting.json").read_text())["precision"] == "bfloat16"
    assert not tint(make_world(), tmp_path, steps=1, processes=Half())
    with pytest.raises(ValueError, match=r"settings\.precision is 'bfloat16' there and 'float32' here"):
        tint(make_world(), tmp_path, steps=1)


class Rows(Dataset):
    """Dictionaries, which are not kept in memory."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"features": self.x[index], "mask": torch.ones(1)}


class Masked(Encoder):
    def forward(self, features, mask):
        return super().forward(features) * mask


DATA = {
    "batches": lambda x: list(x.split(32)),
    "a loader of tensors": lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=16),
    "dictionaries": lambda x: [
        {"features": part, "mask": torch.ones(len(part), 1)} for part in x.split(32)
    ],
    "a data set": lambda x: Rows(x),
}


@pytest.mark.parametrize("form", DATA)
def test_one_changed_sample_of_200_is_other_data(form, tmp_path):
    def world(x):
        made = make_world(["cats"])
        if form in ("dictionaries", "a data set"):
            for encoder in (made.pretrained, *made.experts.values()):
                encoder.__class__ = Masked
        made.unlabeled = {"cats": DATA[form](x)}
        return made

    x = torch.randn(200, 5)
    settings = {"steps": 1, "batch_size": 200}
    assert tint(world(x), tmp_path, **settings)
    assert not tint(world(x.clone()), tmp_path, **settings)
    for place in (1, 133, 198):
        changed = x.clone()
        changed[place, 2] += 1e-3
        with pytest.raises(ValueError, match=r"another run: contents\.data\.cats"):
            tint(world(changed), tmp_path, **settings)


def test_labels_and_samples_that_are_not_visited_do_not_count(tmp_path):
    x, labels = torch.randn(200, 5), torch.zeros(200)

    def world():
        made = make_world(["cats"])
        made.unlabeled = {"cats": DataLoader(TensorDataset(x.clone(), labels.clone()), batch_size=20)}
        return made

    assert tint(world(), tmp_path, steps=1, batch_size=8)
    labels += 1
    visited = ft.TintedModel.load(tmp_path, **world().models()).info.samples["cats"]
    assert visited == 8
    assert not tint(world(), tmp_path, steps=1, batch_size=8)


def test_of_more_data_than_is_kept_a_share_is_looked_at(monkeypatch):
    monkeypatch.setattr("fusion_tinting.run.unlabeled.CACHE_BYTES", 0)
    x = torch.randn(1000, 2)
    before = ft.Unlabeled(Rows(x)).content()
    changed = x.clone()
    changed[:20] += 1
    assert ft.Unlabeled(Rows(changed)).content() != before == ft.Unlabeled(Rows(x.clone())).content()


def test_a_version_vouches_for_the_rest():
    x = torch.randn(10, 2)
    one, same, other = (ft.Unlabeled(Rows(x), version=version).content() for version in "aab")
    assert one == same != other


def test_an_artifact_of_a_newer_library_is_asked_and_not_compared(finished, tmp_path):
    world = scaled_world()
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tinting.json"
    manifest = json.loads(path.read_text())
    manifest["contents"]["libraries"]["torch"] = "1.0"
    del manifest["crc32"]
    path.write_text(json.dumps(manifest))
    world.experts["cats"].last.added_by_the_library = True
    ft.TintedModel.load(tmp_path, **world.models())
    for scale in scales(world, "all encoders"):
        scale.scale = 1.1
    with pytest.raises(ValueError, match="answer the same input otherwise"):
        ft.TintedModel.load(tmp_path, **world.models())


def test_an_artifact_with_a_hash_for_a_callable_loads(tmp_path):
    world = make_world()
    world.tint(run_dir=tmp_path)
    path = tmp_path / "tinting.json"
    manifest = json.loads(path.read_text())
    for added in ("crc32", "precision", "contents", "answers"):
        del manifest[added]  # as release 0.1.0 wrote it
    manifest["settings"]["sampler"] = "own 1a2b3c4d"
    path.write_text(json.dumps(manifest))
    ft.TintedModel.load(tmp_path, **world.models())
    with pytest.raises(ValueError, match="another run: settings"):
        tint(world, tmp_path, sampler=ft.Named("own", ft.SAMPLERS["all"]))


def test_a_prediction_that_its_expert_does_not_confirm_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path))
    world = scaled_world()
    inputs = {task: ft.Unlabeled.of(batches) for task, batches in world.unlabeled.items()}
    options = {"progress": False, "cache": True}
    first = ft.predict_experts(world.experts, world.heads, inputs, **options)
    monkeypatch.setattr(Scale, "forward", rescaled(Scale.forward))  # the hashes are the same
    second = ft.predict_experts(world.experts, world.heads, inputs, **options)
    for task in world.experts:
        torch.testing.assert_close(
            second[task], ft.predict(world.experts[task], world.heads[task], inputs[task])
        )
        assert not torch.allclose(second[task], first[task])


def test_another_way_of_attention_or_place_on_disk_is_the_same_model():
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    one = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=9), add_pooling_layer=False)
    other = transformers.BertModel(
        transformers.BertConfig(**sizes, vocab_size=9, attn_implementation="eager"), add_pooling_layer=False
    )
    other.load_state_dict(one.state_dict())
    other.name_or_path = other.config.name_or_path = "elsewhere"
    assert value_hash(one) == value_hash(other)
    other.config.hidden_act = "relu"
    assert value_hash(one) != value_hash(other)
