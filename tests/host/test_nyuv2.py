"""NYUv2 through FusionBench: the real configuration on tiny files, the rest on the mini's models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import composed, finished
from fusion_bench.dataset.nyuv2 import NYUv2
from fusion_bench.metrics.nyuv2 import DepthMetric, NormalMetric
from fusion_bench.models.nyuv2 import resnet
from fusion_bench.models.nyuv2.aspp import DeepLabHead
from fusion_bench.models.nyuv2.lightning_module import NYUv2Model
from fusion_bench.models.nyuv2.resnet_dilated import resnet_dilated
from fusion_bench.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from fusion_tinting import mini
from fusion_tinting.families.nyuv2_scenes import Scenes
from fusion_tinting.fusionbench.pools.nyuv2 import NYUv2ModelPool, NYUv2Pool
from fusion_tinting.fusionbench.taskpools.nyuv2 import measure_of
from fusion_tinting.mini.scenes import render

TASKS = ["segmentation", "depth", "normal"]
MICRO = ("modelpool=nyuv2-micro_3", "taskpool=nyuv2-micro_3")
SHORT = (*MICRO, "method=model_tinting", "method.steps=2", "method.batch_size=4", "method.adapt_split=val")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The run that most tests look at."""
    saved = "merged_model_save_path='{log_dir}/saved'"
    return finished(tmp_path_factory.mktemp("run"), *SHORT, "method.objective=soft", saved)


def scores(report: dict) -> dict:
    return {task: report[task] for task in TASKS}


def test_before_any_step_scores_are_those_of_the_pretrained_encoder(fuse):
    tinted = fuse(*MICRO, "method=model_tinting", "method.steps=0", "method.init=0")["report"]
    plain = fuse(*MICRO, "method=dummy")["report"]
    for task in TASKS:
        assert tinted[task] == pytest.approx(plain[task], rel=1e-4, abs=1e-4)
    assert tinted["baselines"]["pretrained"]["depth"] == tinted["depth"]["abs_err"]


def test_the_experts_row_is_each_expert_as_fusionbench_runs_it(done):
    experts = done.report["baselines"]["expert"]
    pool = instantiate(composed(*MICRO).modelpool)
    for task in TASKS:
        data = mini.load_dataset(task, "test", recipe="nyuv2-micro_3")
        images, targets = (
            torch.stack(part) for part in zip(*map(data.__getitem__, range(len(data))), strict=True)
        )
        whole = pool.load_model(task, encoder_only=False).eval()
        measured = measure_of(task, render.CLASSES)
        with torch.no_grad():
            measured.update(whole(images)[task], targets)
        assert experts[task] == pytest.approx(float(measured.compute()[0]), rel=1e-4)


def test_an_artifact_holds_the_tinted_layer_alone_and_gives_the_runs_own_report(done, fuse):
    run = done.folder / "tinting"
    assert load_file(run / "tints" / "depth.safetensors").keys() == {"head.last.weight", "head.last.bias"}
    again = fuse(*MICRO, "method=model_tinting", f"method.artifact={run}")
    assert scores(again["report"]) == scores(done.report)


@pytest.mark.parametrize(
    ("layer", "tinted"),
    [
        ("head.trunk.0", {"head.trunk.0.weight"}),
        (
            "layer3.bn2",
            {f"encoder.layer3.bn2.{n}" for n in ("weight", "bias", "running_mean", "running_var")},
        ),
    ],
)
def test_an_artifact_of_another_layer_holds_it_alone(fuse, tmp_path, layer, tinted):
    first = fuse(*SHORT, f"method.layer={layer}", "method.run_dir=run", "taskpool.baselines=false")
    assert load_file(tmp_path / "run" / "tints" / "depth.safetensors").keys() == tinted
    applied = ("method=model_tinting", "method.artifact=run", "taskpool.baselines=false")
    assert scores(fuse(*MICRO, *applied)["report"]) == scores(first["report"])


def test_the_whole_decoder_can_be_tinted(fuse, tmp_path):
    model = fuse(*SHORT, "method.layer=decoder", "taskpool=dummy", "method.run_dir=run")["merged_model"]
    stored = load_file(tmp_path / "run" / "tints" / "normal.safetensors")
    assert model.layer == "head" and "head.trunk.0.weight" in stored and "head.last.bias" in stored


def test_objectives_of_values_are_l1_and_segmentations_is_the_methods(done):
    assert done.model.info.settings["objective"] == {"segmentation": "soft", "depth": "l1", "normal": "l1"}


def test_tasks_share_their_images_in_memory(cache):
    family = NYUv2Pool(instantiate(composed(*MICRO).modelpool))
    family.load()
    one, two = family.unlabeled("depth", "val"), family.unlabeled("normal", "val")
    assert one is two and one is not family.unlabeled("depth", "test")
    assert torch.is_tensor(one.dataset[0])


def test_the_table_ends_with_shares_and_no_average_of_different_scores(done):
    table = done.shown[done.shown.index("Scores") :]
    for word in (
        "pre-trained",
        "Arithmetic",
        "expert",
        "tinted",
        "segmentation, mIoU %",
        "depth, absolute",
        "normal, mean angle °",
        "average",
        "(inductive)",
    ):
        assert word in table


def test_without_a_task_pool_agreement_of_values_is_shown(fuse, capsys):
    fuse(*SHORT, "~taskpool")
    assert "Agreement with the experts" in capsys.readouterr().out


def test_the_saved_model_is_one_of_the_pools(done, fuse, tmp_path):
    pool = instantiate(composed(*MICRO).modelpool)
    x = torch.rand(2, 3, *render.SIZE)
    for task in TASKS:
        config = {"encoder": "tiny", "decoders": [task], "ckpt_path": str(done.folder / "saved")}
        saved = pool.load_model(OmegaConf.create(config), encoder_only=False).eval()
        torch.testing.assert_close(saved(x)[task], done.model(x, task), rtol=1e-4, atol=1e-4)
    fuse(*MICRO, "method=simple_average", "merged_model_save_path='{log_dir}/plain'", "~taskpool")
    plain = {"encoder": "tiny", "ckpt_path": str(tmp_path / "plain")}
    assert isinstance(pool.load_model(OmegaConf.create(plain)), torch.nn.Module)


def test_absent_classes_do_not_count_and_present_ones_count_as_in_fusionbench():
    labels = torch.randint(13, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[0, 0] = -1
    outputs = torch.randn(2, 13, 8, 8, generator=torch.Generator().manual_seed(1))
    ours, stock = measure_of("segmentation", 13), measure_of("segmentation", 13).__class__.__mro__[1](13)
    for measured in (ours, stock):
        measured.update(outputs, labels)
    assert torch.equal(torch.stack(ours.compute()), torch.stack(stock.compute()))
    wider = measure_of("segmentation", 15)
    wider.update(torch.cat([outputs, torch.full((2, 2, 8, 8), -9.0)], 1), labels)
    assert torch.equal(torch.stack(wider.compute()), torch.stack(stock.compute()))
    assert isinstance(measure_of("depth", 1), DepthMetric)
    assert isinstance(measure_of("normal", 3), NormalMetric)


def of_another_architecture(tmp_path: Path) -> str:
    save_file({"encoder.conv1.weight": torch.ones(2, 3, 3, 3)}, tmp_path / "model.safetensors")
    return f"modelpool.models.depth.ckpt_path={tmp_path}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modelpool.models.depth.ckpt_path=nowhere.ckpt"], r"`nowhere.ckpt` is missing"),
        (["modelpool.models.depth.ckpt_path=null"], "The expert `depth` must have a `ckpt_path`"),
        (["modelpool.models.depth.decoders=[normal]"], "`depth` among its `decoders`"),
        (["+modelpool.models.edges={encoder: tiny, decoders: [edges], ckpt_path: depth}"],
         "Unknown task `edges`"),
        (["modelpool.models.depth.encoder=vgg"], "Unknown encoder `vgg`"),
        (["taskpool._target_=fusion_bench.taskpool.NYUv2TaskPool"], "NYUv2TaskPool"),
        (["method.layer=head.first"], "Unknown submodule of the head of `segmentation` `first`"),
        (["method.layer=layer9"], "Unknown layer `layer9`"),
        ([of_another_architecture], r"is \(2, 3, 3, 3\); expected \(16, 3, 3, 3\)"),
        (["~modelpool.val_datasets.depth"], r"no `val_datasets` for \['depth'\]"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_adaptation(fuse, monkeypatch, tmp_path, overrides, message):
    monkeypatch.setattr("fusion_tinting.tinting.train", None)
    overrides = [one(tmp_path) if callable(one) else one for one in overrides]
    with pytest.raises(Exception, match=message):
        fuse(*SHORT, *overrides)


def test_missing_targets_are_refused_before_a_model_is_loaded(fuse, monkeypatch):
    monkeypatch.setattr(NYUv2ModelPool, "load_model", None)
    monkeypatch.setattr(mini, "load_dataset", lambda task, split, **_: Scenes("nowhere", split, task))
    with pytest.raises(Exception, match=r"no images `nowhere/test/image/<number>.npy`"):
        fuse(*SHORT)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    """A folder in which FusionBench's `nyuv2_mtl_train` might have been run, but with tiny images.

    Of the ResNet-50's blocks, of which there are 16, the first of every stage are there.
    """
    folder, make = tmp_path, resnet._resnet
    monkeypatch.setattr(resnet, "_resnet", lambda name, block, _, *rest: make(name, block, [1] * 4, *rest))
    for split, count in (("train", 3), ("val", 2)):
        render.write(folder / ".cache" / "nyuv2" / split, count, np.random.default_rng(count))
    torch.manual_seed(0)
    encoder = resnet_dilated("resnet50", pretrained=False)
    torch.save({**encoder.state_dict(), "fc.bias": torch.zeros(1000)}, folder / "resnet50.pth")
    for task in TASKS:
        for parameter in encoder.parameters():
            parameter.data += 0.01 * parameter.std(correction=0) * torch.randn_like(parameter)
        decoders = torch.nn.ModuleDict({task: DeepLabHead(2048, NYUv2.num_out_channels[task])})
        path = folder / "lightning_logs" / task / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        state = NYUv2Model(encoder, decoders).state_dict()
        torch.save({"epoch": 1, "state_dict": state, "hparams_name": "kwargs"}, path)
    return folder


def test_the_real_configuration_with_a_resnet50_and_no_download(fuse, lab, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.setattr(NYUv2ModelPool, "image_size", render.SIZE)
    monkeypatch.setattr("fusion_bench.models.nyuv2.resnet.load_state_dict_from_url", None)
    result = fuse(
        "modelpool=nyuv2_resnet50", "taskpool=nyuv2_resnet50", "method=model_tinting",
        "modelpool.models._pretrained_.ckpt_path=resnet50.pth", "taskpool.dataloader_kwargs.num_workers=0",
        "method.steps=1", "method.batch_size=2", "method.adapt_split=train", "method.num_workers=0",
        "method.run_dir=run",
    )  # fmt: skip
    report = result["report"]
    assert 0 <= report["segmentation"]["mIoU"] <= 1 and report["depth"]["abs_err"] > 0
    assert report["baselines"].keys() == {"pretrained", "task_arithmetic", "expert"}
    manifest = json.loads((lab / "run" / "tinting.json").read_text())
    assert manifest["layer"] == "head.last"
    assert manifest["experts"]["depth"]["id"] == "lightning_logs/depth/checkpoints/last.ckpt"
    tint = load_file(lab / "run" / "tints" / "segmentation.safetensors")
    assert {name: tuple(t.shape) for name, t in tint.items()} == {
        "head.last.weight": (13, 256, 1, 1), "head.last.bias": (13,),
    }  # fmt: skip
    names = set(load_file(lab / "run" / "coefficients.safetensors"))
    stored = torch.load(lab / "lightning_logs/depth/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert names == {n for n, t in stored.items() if n.startswith("encoder.") and t.is_floating_point()}
