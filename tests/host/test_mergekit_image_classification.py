"""`mergekit-tint learn`, `variants` and `pytorch` on image classifiers of transformers."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
)

from fusion_tinting.families.image_classification import ImageClassification
from fusion_tinting.mergekit import cli
from fusion_tinting.mergekit.config import read
from fusion_tinting.mergekit.learn import learn

LABELS = {"animals": ["cat", "dog", "owl"], "tools": ["axe", "saw"]}
COUNT = 6
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
STAGES = {"hidden_sizes": [4, 6, 8, 8], "depths": [1, 1, 1, 1]}
CONFIGS = {
    "vit": ViTConfig(**SIZE, intermediate_size=24, image_size=32, patch_size=16),
    "swin": SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
    "convnext": ConvNextConfig(**STAGES),
    "dinov2": Dinov2Config(**SIZE, image_size=32, patch_size=16),
    "resnet": ResNetConfig(**STAGES, embedding_size=4, layer_type="basic"),
}
BLOCK = {
    "vit": "vit.layers.1", "swin": "encoder.layers.1", "convnext": "encoder.stages.3",
    "dinov2": "block:-1", "resnet": "encoder.stages.3",
}  # fmt: skip


@dataclass
class World:
    """A base, its experts and their pictures, in folders."""

    folder: Path
    base: Path

    @property
    def experts(self) -> dict[str, Path]:
        return {task: self.folder / task for task in LABELS}

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def config(self, **changed) -> Path:
        data = {task: str(self.folder / "images" / task) for task in LABELS}
        models = [
            {"model": str(path), "task": task, "data": data[task], "labels": "label"}
            for task, path in self.experts.items()
        ]
        settings = {"steps": 3, "batch_size": 4, "lr": 0.05, "init": 0.4}
        adapt = {"adapt": {**settings, **changed.pop("adapt", {})}}
        path = self.folder / "config.yml"
        path.write_text(
            yaml.safe_dump({"base_model": str(self.base), "models": models, **adapt, **changed})
        )
        return path


def command(*arguments, code: int = 0) -> str:
    """Run `mergekit-tint` in this process; what it wrote."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def make(tmp_path):
    """Write a world of one architecture; of the base with its head, as of ImageNet, or without."""

    def world(kind: str, with_head: bool = False) -> World:
        torch.manual_seed(0)
        model = AutoModelForImageClassification.from_config(CONFIGS[kind])
        save(model if with_head else model.base_model, tmp_path / "base")
        for task, names in LABELS.items():
            expert = AutoModelForImageClassification.from_pretrained(
                tmp_path / "base", num_labels=len(names), ignore_mismatched_sizes=True,
                id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
            )  # fmt: skip
            for name, tensor in expert.state_dict().items():
                if tensor.is_floating_point():
                    noise = torch.randn_like(tensor)
                    tensor.mul_((0.3 * noise).exp()) if "running_var" in name else tensor.add_(0.1 * noise)
            save(expert, tmp_path / task)
            draw(tmp_path / "images" / task, names)
        return World(tmp_path, tmp_path / "base")

    return world


def save(model, folder: Path) -> None:
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def draw(folder: Path, names: list[str]) -> None:
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).mkdir(parents=True)
        for place in range(COUNT):
            Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(
                folder / name / f"{place}.png"
            )


def pixels(world: World, task: str) -> torch.Tensor:
    paths = sorted((world.folder / "images" / task).rglob("*.png"))
    processor = ViTImageProcessor.from_pretrained(world.experts[task])
    return processor(images=[Image.open(path) for path in paths], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def transformers_logits(folder: Path, images: torch.Tensor) -> torch.Tensor:
    model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return model.eval()(pixel_values=images).logits


@pytest.mark.parametrize(
    ("kind", "layer"),
    [*((kind, "head") for kind in CONFIGS), *((kind, "block") for kind in ("vit", "swin", "resnet"))],
)
def test_variants_give_the_logits_of_the_tinted_model(make, kind, layer):
    world = make(kind, with_head=layer == "block")
    config = world.config(adapt={"layer": BLOCK[kind] if layer == "block" else "head"})
    model, aside = learn(read(config), world.run, progress=False)
    for task in LABELS:
        with torch.no_grad():
            one_hot = model.remerged(task)(pixels(world, task), task)
        expected = transformers_logits(world.experts[task], pixels(world, task))
        torch.testing.assert_close(one_hot, expected, rtol=1e-3, atol=1e-4)
        assert set(aside[task].labels.tolist()) <= set(range(len(LABELS[task])))
    command("variants", world.run, world.folder / "out")
    for task in LABELS:
        with torch.no_grad():
            tinted = model(pixels(world, task), task)
        shipped = transformers_logits(world.folder / "out" / task, pixels(world, task))
        torch.testing.assert_close(shipped, tinted, rtol=1e-3, atol=1e-4)
        assert (tinted - model.remerged(task)(pixels(world, task), task)).abs().max() > 1e-2


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_recipe_makes_the_shared_backbone(make, kind, headless):
    """Heads stay out of it, also those of other shapes; variances are merged as they were learned."""
    world = make(kind, with_head=True)
    if headless:
        path = world.base / "model.safetensors"
        tensors = {name: t for name, t in load_file(path).items() if not name.startswith("classifier")}
        save_file(tensors, path, {"format": "pt"})
    learn(read(world.config()), world.run, progress=False)
    merge = (
        "pytorch",
        world.run / "recipe.yml",
        world.folder / "merged",
        "--tensor-intersection",
        "--quiet",
    )
    command(*merge)
    merged = load_file(world.folder / "merged" / "model.safetensors")
    command("variants", world.run, world.folder / "out")
    stored = load_file(world.folder / "out" / "shared" / "model-1.safetensors")
    assert stored.keys() == {name for name in merged if not name.endswith("num_batches_tracked")}
    for name, tensor in stored.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-4, atol=1e-5)
    plain = (world.run / "recipe-task-arithmetic.yml").is_file()
    assert plain == (headless and kind == "vit")  # which can neither leave out heads nor merge log σ²


def test_the_command_reports_accuracy_and_says_what_comes_next(make):
    world = make("vit", with_head=True)
    output = command("learn", world.config(), world.run, "--quiet")
    for words in ("Agreement with the experts", "Accuracy, %", "variants", "pytorch"):
        assert words in output
    names = load_file(world.run / "coefficients.safetensors").keys()
    on_disk = load_file(world.experts["tools"] / "model.safetensors").keys()
    assert names == {name for name in on_disk if not name.startswith("classifier")}
    tint = load_file(world.run / "tints" / "tools.safetensors")
    assert {name: len(tensor) for name, tensor in tint.items()} == {
        "classifier.weight": 2,
        "classifier.bias": 2,
    }


def _another_architecture(world: World) -> str:
    save(AutoModelForImageClassification.from_config(CONFIGS["convnext"]), world.experts["tools"])
    return "architecture convnext; the base"


def _no_head(world: World) -> str:
    save(AutoModelForImageClassification.from_config(CONFIGS["vit"]).base_model, world.experts["tools"])
    return "no complete ViTForImageClassification"


def _no_processor(world: World) -> str:
    (world.experts["tools"] / "preprocessor_config.json").unlink()
    return "preprocessor_config.json"


def _no_picture(world: World) -> str:
    (world.folder / "images" / "tools" / "axe" / "3.png").write_text("none")
    return "no readable image in its column `image`"


def _other_classes(world: World) -> str:
    path = world.experts["tools"] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config))
    draw(world.folder / "images" / "tools" / "..", ["tools/hoe", "tools/pen"])
    return "head calls its classes"


@pytest.mark.parametrize(
    "harm", [_another_architecture, _no_head, _no_processor, _no_picture, _other_classes]
)
def test_what_cannot_work_is_refused_with_nothing_written(make, harm):
    world = make("vit")
    words = harm(world)
    config = world.config(family="image_classification")
    assert words in command("learn", config, world.run, "--quiet", code=1)
    assert not world.run.exists()


def test_the_recipe_can_be_copied():
    config = read(Path(__file__).parents[2] / "configs" / "recipes" / "convnext-base-224.yml")
    config.require_read(ImageClassification.keys, "image_classification")
    assert len(config.by_task) == 8
    assert {(e.data.split, e.data.image, e.data.label) for e in config.experts} == {
        ("test", "image", "label")
    }
