"""`mergekit-tint learn` and `variants` on CLIP vision towers, laid out on disk as the hub's."""

import io
import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn
from hub import COMMIT, TASKS, make_hub, make_models, read_offline
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from fusion_tinting.families.images import Images
from fusion_tinting.mergekit import cli
from fusion_tinting.mergekit.class_names import classes_of
from fusion_tinting.mergekit.config import Data, Expert, read
from fusion_tinting.mergekit.learn import learn
from fusion_tinting.mergekit.rows import rows_of

ARCHITECTURE = "clip-vit-base-patch32"
CLASSES = ["cat", "dog", "owl"]
COUNT = 12
RECIPE = Path(__file__).parents[2] / "configs" / "recipes" / "clip-vit-b32.yml"


@dataclass
class World:
    """A base, two experts of it and their images, in folders."""

    base: Path
    experts: dict[str, Path]
    images: Path

    def config(self, folder: Path, **changed) -> Path:
        """Write a configuration; `data` of every model, and other keys, as `changed` says."""
        data = {"path": str(self.images), "classes": CLASSES, **changed.pop("data", {})}
        models = [{"model": str(e), "task": t, "data": data} for t, e in self.experts.items()]
        whole = {"base_model": str(self.base), "models": models, **changed}
        (folder / "config.yml").write_text(yaml.safe_dump(whole))
        return folder / "config.yml"


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    hub, images = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("images")
    make_models(hub, ARCHITECTURE, ("mnist", "dtd"))
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (images / name).mkdir()
        for i in range(COUNT // len(CLASSES)):
            pixels = rng.integers(256, size=(40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / name / f"{i}.png")

    def at(repository: str) -> Path:
        return hub / repository / "snapshots" / COMMIT

    experts = {task: at(f"models--tanganke--{ARCHITECTURE}_{task}") for task in ("mnist", "dtd")}
    return World(at(f"models--openai--{ARCHITECTURE}"), experts, images)


def command(*arguments) -> str:
    """Run `mergekit-tint` in this process; what it wrote."""
    result = CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def adapt(**settings) -> dict:
    return {"sampler": "all", "steps": 3, "batch_size": 4, **settings}


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.png"))]


@torch.no_grad()
def shipped_logits(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    """Logits from the files of a variant alone, as its documentation says."""
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    tower, told = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    head = load_file(folder / "head.safetensors")
    embedding = tower.eval()(pixel_values=pixels).pooler_output @ head["visual_projection.weight"].T
    embedding = torch.nn.functional.normalize(embedding, dim=-1)
    return embedding @ head["weight"].T + head["bias"]


@pytest.mark.parametrize("layer", ["head", "visual_projection", "block:-1", "block:0", None])
def test_variants_give_the_logits_of_the_tinted_model(world, tmp_path, layer):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    settings = adapt(layer=layer, lr_coefficients=0.05, **({"lr_tints": 0.05} if layer else {}))
    model, _ = learn(read(world.config(tmp_path, adapt=settings)), run_dir, progress=False)
    command("variants", run_dir, out)
    images = pictures(world.images)
    processor = CLIPImageProcessor.from_pretrained(world.base)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    logits = {task: shipped_logits(out / task, images) for task in world.experts}
    for task, found in logits.items():
        with torch.no_grad():
            torch.testing.assert_close(found, model(pixels, task=task), rtol=0, atol=1e-5)
    assert (logits["mnist"] - logits["dtd"]).abs().max() > 1e-3 or layer is None
    moved = torch.cat([row for name, row in model.coefficients.items() if name not in model.tinted_tensors])
    assert (moved != 0.3).all()
    on_disk = load_file(world.experts["mnist"] / "model.safetensors")
    assert load_file(run_dir / "coefficients.safetensors").keys() == on_disk.keys()
    assert json.loads((out / "mnist" / "head.json").read_text())["classes"] == CLASSES
    assert (out / "dtd" / "model-shared-1.safetensors").is_symlink()
    assert len(load_file(out / "dtd" / "model-task.safetensors")) == len(model.tinted_tensors)


def test_the_command_says_what_comes_next_and_variants_writes_one_task(world, tmp_path):
    config = world.config(tmp_path, adapt=adapt(), data={"label": "label", "classes": None})
    said = command("learn", config, tmp_path / "run", "--quiet")
    assert "mergekit-tint variants" in said and "mergekit-tint yaml" not in said
    assert "Accuracy" in said and "Agreement" in said
    model, _ = learn(read(config), tmp_path / "run", progress=False)  # finished: it is loaded
    for use, recipe in (("pytorch", "recipe.yml"), ("pytorch", "recipe-task-arithmetic.yml")):
        command(use, tmp_path / "run" / recipe, tmp_path / recipe, "--tensor-intersection")
        merged = load_file(tmp_path / recipe / "model.safetensors")
        for name, tensor in model.encoder.state_dict().items():
            if not name.startswith("visual_projection"):
                torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)
    command("variants", tmp_path / "run", tmp_path / "out", "--task", "dtd")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dtd", "shared"]


def bare(expert: Path, folder: Path, base: Path) -> Path:
    """As transformers 5 saves a tower that it made itself: no prefix."""
    tensors = load_file(expert / "model.safetensors")
    shutil.copytree(expert, folder)
    short = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    save_file(short, folder / "model.safetensors", {"format": "pt"})
    return folder


def whole(expert: Path, folder: Path, base: Path) -> Path:
    """The expert within a whole CLIP."""
    model = CLIPModel.from_pretrained(base)
    model.vision_model.load_state_dict(CLIPVisionModel.from_pretrained(expert).state_dict())
    model.save_pretrained(folder)
    return folder


def projected(expert: Path, folder: Path, base: Path) -> Path:
    """The expert with the base's projection."""
    config = CLIPVisionModel.from_pretrained(expert).config
    model = CLIPVisionModelWithProjection(config)
    model.vision_model.load_state_dict(CLIPVisionModel.from_pretrained(expert).state_dict())
    model.visual_projection.load_state_dict(CLIPModel.from_pretrained(base).visual_projection.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", [None, bare, whole, projected])
def test_one_hot_coefficients_are_the_expert(world, tmp_path, form):
    experts = world.experts
    if form is not None:
        experts = {t: form(e, tmp_path / t, world.base) for t, e in experts.items()}
    ours = World(world.base, experts, world.images)
    command("learn", ours.config(tmp_path, adapt=adapt(steps=0)), tmp_path / "run", "--quiet")
    path = tmp_path / "run" / "coefficients.safetensors"
    rows = {name: torch.tensor([0.0, 1.0]) for name in load_file(path)}
    save_file(rows, path, {"tasks": json.dumps(list(experts))})
    manifest = path.with_name("tinting.json")  # changed on purpose, so that its hash is dropped
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {}}))
    command("variants", tmp_path / "run", tmp_path / "out")

    reference = CLIPModel.from_pretrained(world.base).eval()
    tower = CLIPVisionModel.from_pretrained(world.experts["dtd"])
    reference.vision_model.load_state_dict(tower.state_dict())
    images = pictures(world.images)
    expected = zero_shot(reference, world.base, images)
    found = shipped_logits(tmp_path / "out" / "dtd", images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def zero_shot(model: CLIPModel, base: Path, images: list[Image.Image]) -> torch.Tensor:
    """transformers' own zero-shot classification."""
    from transformers import CLIPProcessor

    prompts = [f"a photo of a {name}." for name in CLASSES]
    processor = CLIPProcessor.from_pretrained(base)
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    return model(**inputs).logits_per_image


def png(path: Path) -> bytes:
    stream = io.BytesIO()
    Image.open(path).save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_data_gives_the_same_pixels(world, tmp_path):
    paths = sorted(world.images.rglob("*.png"))
    labels = [CLASSES.index(path.parent.name) for path in paths]
    table = {"image": [{"bytes": png(path), "path": None} for path in paths], "label": labels}
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=CLASSES)})
    Dataset.from_dict(table, features=features).to_parquet(tmp_path / "images.parquet")
    raw = {"image": [png(path) for path in paths], "label": labels}
    Dataset.from_dict(raw).to_parquet(tmp_path / "bytes.parquet")
    shutil.copytree(world.images, tmp_path / "images")
    relative = [f"images/{path.relative_to(world.images)}" for path in paths]
    lines = [json.dumps({"image": p, "label": n}) for p, n in zip(relative, labels, strict=True)]
    (tmp_path / "paths.jsonl").write_text("\n".join(lines))
    cells = [f"{path},{CLASSES[n]}" for path, n in zip(paths, labels, strict=True)]  # absolute; names
    (tmp_path / "paths.csv").write_text("\n".join(["image,label", *cells]))

    processor = CLIPImageProcessor.from_pretrained(world.base)
    files = ("images.parquet", "bytes.parquet", "paths.jsonl", "paths.csv")
    expected = [processor(images=Image.open(p), return_tensors="pt")["pixel_values"][0] for p in paths]
    for place in (world.images, *(tmp_path / name for name in files)):
        rows = rows_of(Expert(model="m", task="task", data=Data(path=str(place), label="label")))
        pixels = Images(rows, processor)
        torch.testing.assert_close(torch.stack(list(pixels)), torch.stack(expected), rtol=0, atol=0)
        names = {name: n for n, name in enumerate(CLASSES)}
        assert rows.labels(3, names).tolist() == labels


def test_class_names_come_from_a_list_a_file_fusion_bench_or_the_data_set(world, tmp_path):
    def prompts(**data) -> list[list[str]]:
        expert = Expert(model="m", task="task", data=Data(path=str(world.images), **data))
        names, templates = classes_of(expert.data, rows_of(expert))
        return [[template(name) for template in templates] for name in names]

    assert prompts() == [[f"a photo of a {name}."] for name in CLASSES]
    (tmp_path / "names.txt").write_text("lynx\n\nsnow leopard\n")
    assert prompts(classes=str(tmp_path / "names.txt"), template="one {}, two {}") == [
        ["one lynx, two lynx"],
        ["one snow leopard, two snow leopard"],
    ]
    several = prompts(classes=["x"], template=["a {}", "the {}"])
    assert several == [["a x", "the x"]]
    fused = prompts(classes="fusion_bench:eurosat")
    assert len(fused) == 10 and fused[0][0].startswith("a centered satellite photo of")
    assert prompts(classes="fusion_bench:eurosat", template="{}")[0] == ["annual crop land"]


@pytest.fixture
def refused(world, tmp_path):
    """Run `learn` on a configuration that must be refused, with nothing written; what it said."""

    def run_it(world=world, **changed) -> str:
        config = world.config(tmp_path, adapt=adapt(), **changed)
        result = CliRunner().invoke(cli.main, ["learn", str(config), str(tmp_path / "run"), "--quiet"])
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert not (tmp_path / "run").exists()
        return " ".join(result.output.split())

    return run_it


def test_bad_data_is_refused(world, tmp_path, refused):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(world.images.rglob("*.png"))):
        shutil.copy(path, flat / f"{i:02}.png")
    assert "does not say what its classes are called" in refused(data={"path": str(flat), "classes": None})
    assert "Unknown image column" in refused(data={"image": "picture"})
    assert "Unknown label column" in refused(data={"path": str(flat), "label": "label"})
    assert "the label 2" in refused(data={"classes": CLASSES[:2], "label": "label"})
    assert "`{}` where the class goes" in refused(data={"template": "a photo"})
    assert "names.txt" in refused(data={"classes": str(tmp_path / "names.txt")})
    assert "task of FusionBench `mnits`" in refused(data={"classes": "fusion_bench:mnits"})
    assert "has no effect" in refused(data={"text_pair": "text"})
    assert "must be a text or a list of texts" in refused(data={"classes": [1, 2]})
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(data={"path": str(tmp_path / "empty")})
    assert "nowhere" in refused(data={"path": str(tmp_path / "nowhere")})
    (flat / "03.png").write_text("no image")
    said = refused(data={"path": str(flat)})
    assert "Row 3 of" in said and "03.png" in said and "no readable image" in said
    (flat / "03.png").write_bytes(png(flat / "04.png")[:-200])
    assert "Row 3 of" in refused(data={"path": str(flat)})


def altered(world: World, folder: Path, change) -> World:
    """A world whose second expert is another model."""
    change(folder)
    return World(world.base, {**world.experts, "dtd": folder}, world.images)


def test_experts_that_do_not_fit_are_refused(world, tmp_path, refused):
    def other_image_size(folder: Path) -> None:
        config = deepcopy(CLIPVisionModel.from_pretrained(world.experts["dtd"]).config)
        config.image_size = 96
        CLIPVisionModel(config).save_pretrained(folder)

    def other_depth(folder: Path) -> None:
        config = deepcopy(CLIPVisionModel.from_pretrained(world.experts["dtd"]).config)
        config.num_hidden_layers = 3
        CLIPVisionModel(config).save_pretrained(folder)

    def vit(folder: Path) -> None:
        tiny = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        ViTModel(ViTConfig(**tiny, num_hidden_layers=1)).save_pretrained(folder)

    def other_text_tower(folder: Path) -> None:
        model = CLIPModel.from_pretrained(world.base)
        model.text_projection.weight.data += 1
        model.save_pretrained(folder)

    def lacking(folder: Path) -> None:
        shutil.copytree(world.experts["dtd"], folder)
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("vision_model.post_layernorm.weight")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    for change, said in (
        (other_image_size, "`image_size` 96; the base has 64"),
        (other_depth, "layers.2"),
        (vit, "architecture `vit`"),
        (other_text_tower, "another `text_projection.weight`"),
        (lacking, "post_layernorm.weight"),
    ):
        assert said in refused(altered(world, tmp_path / change.__name__, change), family="clip")
    tower = World(world.experts["mnist"], world.experts, world.images)
    assert "architecture `clip_vision_model`. Expected clip" in refused(tower)


def test_variants_refuse_a_model_that_has_changed(world, tmp_path):
    mine = altered(world, tmp_path / "dtd", lambda folder: shutil.copytree(world.experts["dtd"], folder))
    command("learn", mine.config(tmp_path, adapt=adapt()), tmp_path / "run", "--quiet")
    tensors = load_file(tmp_path / "dtd" / "model.safetensors")
    tensors["vision_model.post_layernorm.weight"] += 1
    save_file(tensors, tmp_path / "dtd" / "model.safetensors", {"format": "pt"})
    result = CliRunner().invoke(cli.main, ["variants", str(tmp_path / "run"), str(tmp_path / "out")])
    assert result.exit_code == 1 and "has changed since" in result.output
    assert not (tmp_path / "out").exists()


def test_the_recipe_for_the_hub_runs(tmp_path, monkeypatch):
    config = yaml.safe_load(RECIPE.read_text())
    tasks = [model["task"] for model in config["models"]]
    assert tasks == list(TASKS)[:8]
    tasks = [task for task in tasks if task not in ("sun397", "stanford-cars")]  # which have many classes
    config["models"] = [model for model in config["models"] if model["task"] in tasks]
    make_hub(tmp_path / "hub", (ARCHITECTURE,), tasks)
    config["adapt"] |= {"steps": 1, "batch_size": 2}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    with read_offline(tmp_path / "hub"):
        command("learn", "config.yml", "run", "--quiet")
        command("variants", "run", "out")
    for task in tasks:
        CLIPVisionModel.from_pretrained(tmp_path / "out" / task)
    assert len(load_file(tmp_path / "out" / "resisc45" / "head.safetensors")["bias"]) == 45
