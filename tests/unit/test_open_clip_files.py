"""OpenCLIP encoders and heads: against open_clip itself, and every format they come in."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import released_open_clip as released
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from torchvision.transforms import InterpolationMode

from fusion_tinting import convert
from fusion_tinting.families.open_clip import Architecture, ClassificationHead
from fusion_tinting.families.open_clip_files import load_encoder, load_head
from fusion_tinting.families.pickles import StandIn, unpickled

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_grad():
    """Attention takes another path with gradients, which rounds otherwise."""
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def registered(tmp_path_factory):
    """`ViT-tiny` is a model of open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "ViT-tiny.json").write_text(json.dumps(released.TINY))
    wider = {**released.TINY, "vision_cfg": {**released.TINY["vision_cfg"], "width": 24}}
    (folder / "ViT-wider.json").write_text(json.dumps(wider))
    open_clip.add_model_config(folder)
    yield
    for name in ("ViT-tiny", "ViT-wider"):
        (folder / f"{name}.json").unlink()
    open_clip.factory._MODEL_CONFIGS.pop("ViT-tiny"), open_clip.factory._MODEL_CONFIGS.pop("ViT-wider")


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("by_torch", [True, False])
def test_a_released_encoder_computes_what_it_did(tmp_path, quick_gelu, by_torch):
    whole = released.encoder(quick_gelu=quick_gelu)
    released.release(whole, tmp_path / "zeroshot.pt", by_torch)
    ours = load_encoder(tmp_path / "zeroshot.pt", "ViT-tiny", trust_pickles=True)
    torch.testing.assert_close(ours(IMAGES), whole(IMAGES))


def test_only_what_encode_image_uses_is_a_parameter_named_as_on_disk(tmp_path):
    whole = released.encoder()
    released.release(whole, tmp_path / "zeroshot.pt")
    ours = load_encoder(tmp_path / "zeroshot.pt", "ViT-tiny", trust_pickles=True)
    names = [name for name, _ in whole.named_parameters()]
    assert {"model.logit_scale", "model.text_projection"} <= set(names)
    assert [n for n, _ in ours.named_parameters()] == [n for n in names if n.startswith("model.visual.")]


def test_a_state_dict_needs_no_trust_and_has_openais_activation(tmp_path):
    whole = released.encoder(quick_gelu=True)
    torch.save(whole.state_dict(), tmp_path / "finetuned.pt")
    ours = load_encoder(tmp_path / "finetuned.pt", "ViT-tiny")
    torch.testing.assert_close(ours(IMAGES), whole(IMAGES))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("by_torch", [True, False])
def test_a_released_head_computes_what_it_did(tmp_path, normalize, by_torch):
    head, z = released.head(5, normalize=normalize), 3 * torch.randn(6, 8)
    released.release(head, tmp_path / "head_task.pt", by_torch)
    ours = load_head(tmp_path / "head_task.pt", trust_pickles=True)
    assert head.bias.abs().min() > 0
    assert torch.equal(ours(z), head(z))
    ours.save(tmp_path / "head_task.safetensors")
    assert torch.equal(load_head(tmp_path / "head_task.pt")(z), head(z))


def test_a_head_without_biases_has_zeros():
    z, weight = torch.randn(2, 8), torch.randn(3, 8)
    head = ClassificationHead(weight, None, normalize=False)
    assert torch.equal(head.bias, torch.zeros(3))
    torch.testing.assert_close(head(z), z @ weight.T)


def test_preprocessing_is_open_clips_for_openais_weights(tmp_path):
    torch.save(released.encoder().state_dict(), tmp_path / "zeroshot.pt")
    ours = load_encoder(tmp_path / "zeroshot.pt", "ViT-tiny")
    _, _, theirs = open_clip.create_model_and_transforms("ViT-tiny", pretrained=None)
    for shape in ((50, 40, 3), (9, 20), (32, 32, 4)):
        image = Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))
        assert torch.equal(ours.val_preprocess(image), theirs(image))
        assert ours.train_preprocess(image).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_the_real_architectures_have_open_clips_tensors(name):
    tower = Architecture.named(name).build()
    with torch.device("meta"):
        whole = open_clip.CLIP(**open_clip.get_model_config(name))
    shapes = {n: t.shape for n, t in tower.state_dict().items()}
    assert shapes == {n: t.shape for n, t in whole.visual.state_dict().items()}
    assert any(type(module).__name__ == "QuickGELU" for module in tower.modules())


class Payload:
    """What a malicious checkpoint would hold."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_without_trust_no_code_of_a_pickle_runs(tmp_path, save):
    save(Payload(tmp_path / "harm"), tmp_path / "zeroshot.pt")
    for load in (lambda path: load_encoder(path, "ViT-tiny"), load_head):
        with pytest.raises(
            ValueError, match=r"can run any code.*fusion_tinting\.convert.*trust_pickles=true"
        ):
            load(tmp_path / "zeroshot.pt")
    assert not (tmp_path / "harm").exists()


def write(path, kind):
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "cut":
        released.release(released.encoder(), path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "head":
        released.release(released.head(5), path)
    elif kind == "wider":
        torch.save({n: t[:1] for n, t in released.encoder().state_dict().items() if t.ndim}, path)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("text", "ViT-tiny", "is no checkpoint that can be read"),
        ("cut", "ViT-tiny", "is no checkpoint that can be read"),
        ("list", "ViT-tiny", "holds a list"),
        ("head", "ViT-tiny", "no image encoder of the architecture `ViT-tiny`: missing tensors"),
        ("wider", "ViT-tiny", r"Tensor `model.visual.class_embedding` of .* is \(1,\); .* has \(16,\)"),
        ("wider", "ViT-tny", "Unknown model_name `ViT-tny`. Did you mean `ViT-tiny`"),
        ("wider", None, "does not tell its architecture"),
    ],
)
def test_a_file_that_is_no_such_encoder_is_named(tmp_path, kind, name, message):
    path = tmp_path / "zeroshot.pt"
    write(path, kind)
    with pytest.raises(ValueError, match=message):
        load_encoder(path, name, trust_pickles=True)


def test_an_encoder_is_no_head(tmp_path):
    released.release(released.encoder(), tmp_path / "head.pt")
    with pytest.raises(ValueError, match="is no classification head"):
        load_head(tmp_path / "head.pt", trust_pickles=True)
    with pytest.raises(FileNotFoundError, match=r"none\.pt.*none\.safetensors"):
        load_head(tmp_path / "none.pt")


@pytest.fixture
def folder(tmp_path):
    """A folder as released."""
    top = tmp_path / "checkpoints"
    released.release(released.encoder(), top / "ViT-tiny" / "zeroshot.pt")
    released.release(released.encoder(1), top / "ViT-tiny" / "Cars" / "finetuned.pt")
    released.release(released.head(4), top / "ViT-tiny" / "head_Cars.pt", by_torch=False)
    return top


def converted(*arguments):
    return CliRunner().invoke(convert.main, [str(argument) for argument in arguments])


class ByName:
    """As Python before 3.11.4 pickles the member of an enumeration."""

    def __reduce__(self):
        return getattr, (InterpolationMode, "BICUBIC")


def test_enumerations_pickled_by_name_are_read(tmp_path):
    (tmp_path / "one.pkl").write_bytes(pickle.dumps({"mode": ByName(), "size": 3}))
    found = unpickled(tmp_path / "one.pkl")
    assert found["size"] == 3
    assert isinstance(found["mode"], StandIn)


class TestConvert:
    def test_a_converted_folder_needs_no_trust_and_no_name(self, folder, tmp_path):
        result = converted(folder, tmp_path / "out", "--trust-pickles")
        assert result.exit_code == 0, result.output
        names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
        files = {"zeroshot", "Cars/finetuned", "head_Cars"}
        assert names == {f"ViT-tiny/{name}.safetensors" for name in files}
        ours = load_encoder(tmp_path / "out/ViT-tiny/Cars/finetuned.pt", None)
        torch.testing.assert_close(ours(IMAGES), released.encoder(1)(IMAGES))
        with safe_open(tmp_path / "out/ViT-tiny/zeroshot.safetensors", "pt") as file:
            assert json.loads(file.metadata()["open_clip"])["model_name"] == "ViT-tiny"
            assert all(name.startswith("model.visual.") for name in file.keys())  # noqa: SIM118

    def test_nothing_is_loaded_without_trust(self, folder, tmp_path):
        result = converted(folder, tmp_path / "out")
        assert result.exit_code == 1
        assert "--trust-pickles" in result.output
        assert not (tmp_path / "out").exists()

    def test_what_is_there_is_kept_unless_forced(self, folder, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine").write_text("")
        result = converted(folder, out, "--trust-pickles")
        assert result.exit_code == 1
        assert "is not empty" in result.output
        assert [p.name for p in out.iterdir()] == ["mine"]
        assert converted(folder, out, "--trust-pickles", "--force").exit_code == 0
        assert [p.name for p in out.iterdir()] == ["ViT-tiny"]

    def test_the_checkpoints_themselves_are_not_replaced(self, folder):
        before = sorted(folder.rglob("*"))
        for out in (folder, folder.parent):
            result = converted(folder, out, "--trust-pickles", "--force")
            assert result.exit_code == 1
            assert "which would be lost" in result.output
        assert sorted(folder.rglob("*")) == before

    @pytest.mark.parametrize("options", [[], ["--force"]])
    def test_a_file_that_cannot_be_read_leaves_nothing_behind(self, folder, tmp_path, options):
        (folder / "ViT-tiny" / "zzz.pt").write_text("no checkpoint")
        result = converted(folder, tmp_path / "out", "--trust-pickles", *options)
        assert result.exit_code == 1
        assert "zzz.pt` is no checkpoint" in result.output
        assert {p.name for p in tmp_path.iterdir()} == {"checkpoints"}

    def test_an_architecture_that_no_folder_names_is_asked_for(self, folder, tmp_path):
        (folder / "ViT-tiny").rename(folder / "mine")
        result = converted(folder, tmp_path / "out", "--trust-pickles")
        assert "does not tell its architecture" in result.output
        wrong = converted(folder, tmp_path / "out", "--trust-pickles", "--model-name=ViT-wider")
        assert "the architecture `ViT-wider` has" in wrong.output
        right = converted(folder, tmp_path / "out", "--trust-pickles", "--model-name=ViT-tiny")
        assert right.exit_code == 0, right.output

    def test_a_folder_without_checkpoints_is_named(self, tmp_path):
        assert "no .pt file" in converted(tmp_path, tmp_path / "out", "--trust-pickles").output

    def test_help_loads_neither_torch_nor_open_clip(self):
        code = (
            "import sys\nfrom fusion_tinting.convert import main\n"
            "main(['--help'], standalone_mode=False)\nassert not {'torch', 'open_clip'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "--trust-pickles" in done.stdout
