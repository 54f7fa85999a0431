"""`method=model_tinting` on FusionBench's ResNet, ConvNeXt and DINOv2 pools, in its task pool and ours."""

import json
from pathlib import Path

import pytest
import torch
from command import assert_streams_the_same, composed, finished
from fusion_bench.modelpool import ResNetForImageClassificationPool
from fusion_bench.tasks.clip_classification import get_num_classes
from fusion_bench.utils import instantiate
from hub import TASKS as DATASETS
from hub import make_dataset, read_offline, snapshot
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fusion_tinting.families.image_classification import head_name

TASKS = ["mini-counts", "mini-textures", "mini-cards"]
POOLS = ("modelpool=resnet-micro_3", "taskpool=resnet-micro_3")
SHORT = ("method=model_tinting", "method.steps=3", *POOLS)
HUB_TASKS = list(DATASETS)[:8]

SIZES = {"hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}
RESNETS = ("microsoft/resnet-18", "microsoft/resnet-50", "microsoft/resnet-152")
MAKERS = {
    "facebook/convnext-base-224": lambda n: ConvNextForImageClassification(
        ConvNextConfig(**SIZES, num_labels=n)
    ),
    **dict.fromkeys(
        RESNETS,
        lambda n: ResNetForImageClassification(ResNetConfig(**SIZES, embedding_size=4, num_labels=n)),
    ),
    "facebook/dinov2-base-imagenet1k-1-layer": lambda n: Dinov2ForImageClassification(
        Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, num_labels=n)
    ),
    "google/vit-base-patch16-224-in21k": lambda n: ViTForImageClassification(
        ViTConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            num_labels=n,
        )
    ),
    "microsoft/swin-base-patch4-window7-224": lambda n: SwinForImageClassification(
        SwinConfig(image_size=32, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=n)
    ),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The run that most tests look at."""
    saved = "merged_model_save_path='{log_dir}/saved'"
    return finished(tmp_path_factory.mktemp("run"), *SHORT, saved)


def accuracies(report) -> list[float]:
    return [report[task]["accuracy"] for task in TASKS]


def zoo_of(run) -> Path:
    return Path(run.model.info.ids["mini-counts"]).parent


def test_a_run_ends_with_the_baselines_and_one_hot_merges_are_the_experts(done, fuse):
    report = done.report
    assert report["baselines"].keys() == {"pretrained", "expert", "task_arithmetic"}
    for task in TASKS:
        others = [f"~taskpool.test_datasets.{other}" for other in TASKS if other != task]
        own = fuse("method=dummy", *POOLS, f"modelpool.models={{_pretrained_: {task}}}", *others)["report"]
        assert report["baselines"]["expert"][task] == own[task]["accuracy"]
    pretrained = AutoModelForImageClassification.from_pretrained(zoo_of(done) / "pretrained")
    shared = done.model.remerged(0.0).merged.state_dict()
    torch.testing.assert_close(shared, pretrained.state_dict(), rtol=1e-4, atol=1e-6)


def test_the_stock_task_pool_switches_heads_and_scores_the_same(done):
    datasets = composed(*POOLS).taskpool.test_datasets
    plain = OmegaConf.to_container(datasets, resolve=False)
    flat = {task: {**node, "seed": 0, "recipe": "resnet-micro_3"} for task, node in plain.items()}
    pool = {
        "_target_": "fusion_bench.taskpool.image_classification.ImageClassificationTaskPool",
        "_recursive_": False,
        "processor": str(zoo_of(done) / "pretrained"),
        "test_datasets": flat,
        "dataloader_kwargs": {"batch_size": 20},
    }
    theirs = instantiate(OmegaConf.create(pool)).evaluate(done.model)
    assert accuracies(theirs) == accuracies(done.report)
    assert len({theirs[task]["loss"] for task in TASKS}) == 3


def test_an_artifact_applied_gives_the_runs_own_report(done, fuse):
    run = done.folder / "tinting"
    again = fuse("method=model_tinting", f"method.artifact={run}", *POOLS)
    assert accuracies(again["report"]) == accuracies(done.report)
    on_disk = load_file(zoo_of(done) / "pretrained" / "model.safetensors")
    assert load_file(run / "coefficients.safetensors").keys() == {
        name for name in on_disk if not name.startswith("classifier") and "num_batches" not in name
    }


def test_an_artifact_of_another_layer_gives_the_runs_own_report(done, fuse):
    first = fuse(*SHORT, "method.layer=encoder.stages.3", "method.run_dir=run", "taskpool.baselines=false")
    applied = ("method=model_tinting", "method.artifact=run", "taskpool.baselines=false")
    again = fuse(*applied, *POOLS)
    assert accuracies(again["report"]) == accuracies(first["report"])
    files = [folder / "coefficients.safetensors" for folder in (Path("run"), done.folder / "tinting")]
    assert load_file(files[0]).keys() == load_file(files[1]).keys()


def test_what_is_saved_is_the_shared_classifier_and_loads_in_the_pool(done):
    model, saved = done.model, done.folder / "saved"
    loaded = AutoModelForImageClassification.from_pretrained(saved)
    torch.testing.assert_close(loaded.state_dict(), model.merged.state_dict())
    pool = ResNetForImageClassificationPool(
        models=OmegaConf.create({"_pretrained_": str(saved)}), type="transformers"
    )
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(pool.load_model("_pretrained_").eval()(x), model.merged(x).logits)


def test_experts_are_read_from_their_files_and_teach_the_same(fuse):
    given = (*SHORT, "taskpool.baselines=false")
    assert_streams_the_same(fuse, *given)


def test_an_expert_that_would_get_a_new_head_is_refused(fuse):
    entry = "modelpool.models.mini-cards={config_path: mini-cards, dataset_name: mini-cards}"
    with pytest.raises(ValueError, match="expert `mini-cards` a new, untrained head"):
        fuse(*SHORT, entry)


def test_a_head_of_another_width_is_refused(fuse):
    with pytest.raises(ValueError, match=r"head of the expert `mini-cards` has 8 classes; the task has 16"):
        fuse(*SHORT, "modelpool.models.mini-cards=mini-counts")


def test_another_architecture_is_refused(fuse, tmp_path):
    MAKERS["facebook/convnext-base-224"](get_num_classes("mini-cards")).save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match="expert `mini-cards` is not of the pre-trained model's architecture"
    ):
        fuse(*SHORT, f"modelpool.models.mini-cards={tmp_path}/other")


def test_a_checkpoint_without_head_is_refused(fuse, tmp_path):
    MAKERS[RESNETS[0]](3).resnet.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="headless` is no complete ResNetForImageClassification"):
        fuse(*SHORT, f"modelpool.models.mini-cards={tmp_path}/headless")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The real pools' repositories, tiny, with data; and experts for the pools that name none."""
    folder = tmp_path_factory.mktemp("hub")
    for task in HUB_TASKS:
        make_dataset(folder / "datasets", task)
    for repository, make in MAKERS.items():
        name, base = repository.split("/")[1], make(7)
        save(base, snapshot(folder / "hub", f"models--{repository.replace('/', '--')}"))
        for task in HUB_TASKS:
            expert = f"models--tanganke--{name}_{task}_sgd_batch-size-64_lr-0.01_steps-4000"
            real = name == "convnext-base-224"
            where = snapshot(folder / "hub", expert) if real else folder / name / task
            save(expert_of(base, make(get_num_classes(task))), where)
    torchvision_files(folder / "torchvision")
    return folder


def expert_of(base, model):
    """`model` with the backbone of `base`, a little off."""
    head = head_name(base)
    tensors = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith(head)}
    model.load_state_dict(tensors, strict=False)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    return model


def save(model, folder: Path) -> None:
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32},
        "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def torchvision_files(folder: Path) -> None:
    from torchvision.models import resnet18

    folder.mkdir()
    base = resnet18(num_classes=7)
    save_file(base.state_dict(), folder / "base.safetensors")
    for task in HUB_TASKS[:2]:
        expert = expert_of(base, resnet18(num_classes=get_num_classes(task)))
        save_file(expert.state_dict(), folder / f"{task}.safetensors")


def pools(name: str, *more: str) -> list[str]:
    return [f"modelpool={name}_8-tasks", f"taskpool={name}_8-tasks", *more]


def test_the_real_configurations_run_on_checkpoints_in_the_hubs_layout(hub, fuse, tmp_path):
    two = HUB_TASKS[:2]  # enough where the files are of one layout

    without = [f"~taskpool.test_datasets.{task}" for task in HUB_TASKS[2:]]
    for task in HUB_TASKS[2:]:  # what is `???` there cannot be removed
        without += [f"modelpool.models.{task}=none", f"~modelpool.models.{task}"]

    def experts(name):
        return [*without, *(f"modelpool.models.{task}={hub}/{name}/{task}" for task in two)]

    def file(name):
        return f"{{model_name: resnet18, weights: {hub}/torchvision/{name}.safetensors}}"

    torchvision = [
        *(*without, f"modelpool.models._pretrained_={file('base')}"),
        *(f"modelpool.models.{task}={file(task)}" for task in two),
    ]
    named = (
        "dinov2-base-imagenet1k-1-layer",
        "vit-base-patch16-224-in21k",
        "swin-base-patch4-window7-224",
    )
    runs = [
        (pools("convnext-base-224"), HUB_TASKS),
        (pools("resnet50", *experts("resnet-50")), two),
        *((pools(name, *experts(name)), two) for name in named),
        (pools("torchvision-resnet50", *torchvision), two),
    ]
    short = ["method=model_tinting", "method.steps=1", "method.batch_size=2", "method.adapt_split=val"]
    short += ["taskpool.dataloader_kwargs.num_workers=0"]
    with read_offline(hub):
        for size in (18, 152):  # as the one that is run, but for what they name
            config = composed(*pools(f"resnet{size}", *experts(f"resnet-{size}")))
            assert instantiate(config.taskpool) is not None
            for name in ("_pretrained_", *two):
                assert instantiate(config.modelpool).load_model(name) is not None
        for number, (overrides, tasks) in enumerate(runs):
            left = [f"method.run_dir=run{number}", f"merged_model_save_path={tmp_path}/saved{number}"]
            # Of the first the baselines too, as it is configured.
            less = [] if number == 0 else ["taskpool.baselines=false"]
            report = fuse(*overrides, *short, *left, *less)["report"]
            assert set(report) == {"model_info", *tasks, "average", *(() if less else ("baselines",))}
            assert less or report["baselines"]["expert"].keys() == set(tasks)
            assert (tmp_path / f"saved{number}").exists()
