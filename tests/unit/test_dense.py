"""Dense prediction without any host: heads of two parts, files, scenes."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fusion_tinting as ft
from fusion_tinting.families import dense
from fusion_tinting.families.nyuv2_scenes import FOLDER, Scenes
from fusion_tinting.mini.scenes import render
from fusion_tinting.mini.scenes.tiny_dense import TinyDilatedResNet, decoder
from fusion_tinting.run.files import write_tensors

SIZE = (16, 24)


def encoder(seed: int) -> nn.Module:
    """The pre-trained one (0) or an expert near it, with statistics of its own."""
    torch.manual_seed(0)
    found = TinyDilatedResNet().train()
    torch.manual_seed(seed)
    for parameter in found.parameters():
        parameter.data += 0.02 * seed * torch.randn_like(parameter)
    for _ in range(3):
        found(torch.randn(4, 3, *SIZE) * (1 + seed))
    return found.eval()


@pytest.fixture(scope="module")
def tinted(tmp_path_factory):
    """Two tasks, of classes and of values, tinted at the decoders' last layers."""
    experts = {task: dense.encoder_of(encoder(k + 1)) for k, task in enumerate(("segmentation", "depth"))}
    return ft.tint(
        dense.encoder_of(encoder(0)),
        experts=experts,
        heads={task: dense.DenseHead(decoder(task).eval(), SIZE) for task in experts},
        unlabeled={task: torch.randn(12, 3, *SIZE) for task in experts},
        layer="head.last",
        sampler="all",
        objective={"segmentation": "hard", "depth": "l1"},
        steps=3,
        batch_size=4,
        progress=False,
        run_dir=tmp_path_factory.mktemp("tinted") / "run",
        model_class=dense.TintedDense,
    )


def test_a_head_is_the_decoder_resized():
    made, features = decoder("normal").eval(), torch.randn(2, 48, 4, 6)
    expected = F.interpolate(made(features), SIZE, mode="bilinear", align_corners=True)
    assert torch.equal(dense.DenseHead(made, SIZE)(features), expected)


def test_the_merged_encoder_is_of_the_pretrained_class_and_computes_the_same(tinted):
    x = torch.randn(2, 3, *SIZE)
    assert isinstance(tinted.merged, TinyDilatedResNet)
    assert tinted.merged.state_dict().keys() == TinyDilatedResNet().state_dict().keys()
    torch.testing.assert_close(tinted.merged(x), tinted.encoder(x), rtol=1e-4, atol=1e-4)


def test_statistics_are_merged_and_named_as_on_disk(tinted):
    names = dense.names_on_disk(tinted.encoder)
    assert "bn1.running_mean" in tinted.coefficients
    stored = set(names.values())
    floating = {
        f"encoder.{name}" for name, t in TinyDilatedResNet().state_dict().items() if t.is_floating_point()
    }
    assert stored == floating
    for k, task in enumerate(tinted.tasks):
        bn = tinted.remerged(task).merged.layer2.bn1
        torch.testing.assert_close(bn.running_mean, encoder(k + 1).layer2.bn1.running_mean)
        torch.testing.assert_close(bn.running_var, encoder(k + 1).layer2.bn1.running_var)


@pytest.mark.parametrize("layer", ["head.last", "head", "layer3", None])
def test_what_is_saved_is_a_whole_model_with_the_tinted_decoders(tinted, tmp_path, layer):
    again = {task: dense.encoder_of(encoder(k + 1)) for k, task in enumerate(tinted.tasks)}
    heads = dict(zip(tinted.tasks, tinted.heads, strict=True))
    model = dense.TintedDense.untrained(dense.encoder_of(encoder(0)), again, heads, layer)
    model.tint_modules.load_state_dict(
        {name: tensor + 0.1 for name, tensor in model.tint_modules.state_dict().items()}
    )
    model.save_pretrained(tmp_path / "saved")
    tensors = dense.load_tensors(tmp_path / "saved")
    loaded = TinyDilatedResNet().eval()
    dense.fill(loaded, tensors, "encoder.", "saved")
    for task in model.tasks:
        made = decoder(task).eval()
        dense.fill(made, tensors, f"decoders.{task}.", "saved")
        shared = nn.Sequential(loaded, dense.DenseHead(made, SIZE))
        x = torch.randn(2, 3, *SIZE)
        same = torch.allclose(shared(x), model(x, task), rtol=1e-3, atol=1e-3)
        assert same == (layer != "layer3")  # a tint in the encoder is in the artifact alone


@pytest.mark.parametrize("form", ["lightning", "state dict", "safetensors"])
def test_checkpoints_of_every_form_are_read(tmp_path, form):
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder(0).state_dict().items()}
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "last.ckpt")
    if form == "safetensors":
        write_tensors(path, tensors, {})
    else:
        torch.save({"epoch": 3, "state_dict": tensors} if form == "lightning" else tensors, path)
    found = dense.load_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


class Code:
    """What a pickle would run."""


def test_checkpoints_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`.*nothing.ckpt` is missing. Set `ckpt_path`"):
        dense.load_tensors(tmp_path / "nothing.ckpt")
    torch.save({"state_dict": {}, "callbacks": Code()}, tmp_path / "code.ckpt")
    (tmp_path / "text.ckpt").write_bytes(pickle.dumps("text", protocol=2)[:-3])
    for name in ("code", "text"):
        with pytest.raises(ValueError, match=f"{name}.ckpt` is no checkpoint of tensors alone"):
            dense.load_tensors(tmp_path / f"{name}.ckpt")


def test_a_checkpoint_of_another_architecture_is_named():
    tensors = encoder(0).state_dict()
    short = {name: t for name, t in tensors.items() if name != "layer3.conv2.weight"}
    with pytest.raises(ValueError, match=r"`a.ckpt` lacks the tensor `layer3.conv2.weight` of a TinyDil"):
        dense.fill(TinyDilatedResNet(), short, "", "a.ckpt")
    wide = {**tensors, "bn1.weight": torch.ones(17)}
    with pytest.raises(ValueError, match=r"`bn1.weight` in `a.ckpt` is \(17,\); expected \(16,\)"):
        dense.fill(TinyDilatedResNet(), wide, "", "a.ckpt")


@pytest.fixture
def folder(tmp_path):
    """Three scenes of a split, in files."""
    render.write(tmp_path / "val", 3, np.random.default_rng(0))
    return tmp_path


@pytest.mark.parametrize(("target", "shape"), [("segmentation", ()), ("depth", (1,)), ("normal", (3,))])
def test_scenes_are_images_with_the_target_asked_for(folder, target, shape):
    data = Scenes(str(folder), "val", target)
    image, found = data[1]
    assert len(data) == 3
    assert image.shape == (3, *render.SIZE) and found.shape == (*shape, *render.SIZE)
    assert image.dtype == found.dtype == torch.float32
    plain = np.load(folder / "val" / "image" / "1.npy")
    assert torch.equal(image[2], torch.from_numpy(plain[..., 2]))


def test_without_a_target_no_target_is_read(folder):
    for kind in FOLDER.values():
        for file in (folder / "val" / kind).iterdir():
            file.unlink()
    assert torch.is_tensor(Scenes(folder, "val")[0])
    assert len(list(Scenes(folder, "val"))) == len(Scenes(folder, "val"))
    with pytest.raises(ValueError, match="holds 0 targets of `depth` for 3 images"):
        Scenes(folder, "val", "depth")


def test_folders_without_images_and_unknown_targets_are_refused(folder):
    with pytest.raises(ValueError, match=r"no images `.*train/image/<number>.npy`. Set `data_dir`"):
        Scenes(folder, "train")
    with pytest.raises(ValueError, match="Unknown target `noise`"):
        Scenes(folder, "val", "noise")


def test_rendered_scenes_are_consistent():
    image, label, depth, normal = render.render(20, np.random.default_rng(0))
    valid = label >= 0
    assert image.min() >= 0 and image.max() <= 1
    assert set(np.unique(label)) == {-1, *range(render.CLASSES)}
    assert (~valid).sum(axis=(1, 2)).tolist() == [48] * 20
    assert (depth[~valid] == 0).all() and (normal[~valid] == 0).all() and (depth[valid] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(normal[valid], axis=-1), 1, atol=1e-5)
    assert (normal[label == render.FLOOR] == [0, 1, 0]).all()
    assert (normal[label == render.CEILING] == [0, -1, 0]).all()


def test_rendered_scenes_follow_from_the_seed():
    one, two = (render.render(2, np.random.default_rng(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
