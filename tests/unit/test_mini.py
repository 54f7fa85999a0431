"""The mini benchmark: deterministic, disjoint, loadable, and safe to interrupt or to build twice."""

import hashlib
import time
from dataclasses import replace
from itertools import combinations
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from fusion_tinting import mini
from fusion_tinting.mini import recipe, zoo
from fusion_tinting.mini.pictures import canvas, figures, glyphs, photos, tiny_clip
from fusion_tinting.mini.pictures.recipe import pixel_values
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.recipe import SPLITS
from fusion_tinting.mini.zoo import UNFINISHED

MICRO = recipe.find("clip-micro_3")
MORE_TASKS = dict(list(TASKS.items())[8:])


def start_build(cache: Path, workers: int):
    """A process that builds a micro zoo, in a cache of its own; and what it writes."""
    return forked.start(build, workers, folder=cache, environment={"FUSION_TINTING_CACHE": str(cache)})


def build(workers: int) -> None:
    print(mini.build(1, recipe=replace(MICRO, workers=workers)))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(program: BaseProcess) -> list[psutil.Process]:
    """The processes that joblib has started for a program."""
    children = psutil.Process(program.pid).children()
    return [child for child in children if "LokyProcess" in " ".join(child.cmdline())]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of all of a zoo's models."""
    return {
        f"{model}/{name}": tensor
        for model in ("pretrained", *MICRO.tasks)
        for name, tensor in load_file(folder / model / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def micro(cache):
    """The micro zoo with seed 0."""
    return mini.build(0, progress=False, recipe="clip-micro_3")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_images_follow_from_the_seed(task):
    first, again, other = (task.render(40, "train", canvas.FIELD, seed) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_class_is_drawn_equally_often(task):
    classes = len(task.classnames)
    images, labels = task.render(3 * classes, "val", canvas.FIELD, 0)
    assert images.shape == (3 * classes, canvas.SIZE, canvas.SIZE, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [3] * classes


@pytest.mark.parametrize("count", [8, 14, 20])
def test_the_benchmark_has_as_many_tasks_as_its_name_says_and_the_larger_hold_the_smaller(count):
    assert recipe.find(f"clip-mini_{count}").tasks == tuple(TASKS)[:count]
    assert len(TASKS) == 20


def test_the_first_tasks_hold_real_pixels():
    assert set(photos.MATERIALS) < set(TASKS["mini-textures"].classnames)
    assert set(photos.PHOTOGRAPHS) == set(TASKS["mini-photos"].classnames)


@pytest.mark.parametrize("task", MORE_TASKS.values(), ids=MORE_TASKS)
def test_every_class_shows_something(task):
    """Which a background alone, with all its clutter, does not."""
    images, labels = task.render(12 * len(task.classnames), "train", canvas.WEB, 0)
    contrast = images.mean(-1).std(axis=(1, 2))
    for label, name in enumerate(task.classnames):
        assert np.median(contrast[labels == label]) > 10, name


def test_as_many_dots_are_drawn_as_the_class_says():
    from skimage.measure import label as components

    images, labels = TASKS["mini-counts"].render(400, "train", canvas.WEB, 0)
    counts = []
    for image in images.mean(-1):
        # Dots are the smaller part of the picture.
        middle = (image.min() + image.max()) / 2
        dots = min(image > middle, image < middle, key=np.sum)
        counts.append(components(dots, connectivity=1).max())
    assert np.mean(np.array(counts) == labels + 1) > 0.97  # here and there two touch


def test_braille_letters_differ():
    assert len(set(figures.BRAILLE.values())) == len(figures.BRAILLE)


@pytest.mark.parametrize("file", [*photos.PHOTOGRAPHS.values(), *photos.MATERIALS.values()])
def test_photographs_give_each_split_regions_of_its_own(file):
    width, height = photos.photograph(file).size
    times_used = np.zeros((height, width), int)
    for split in SPLITS:
        boxes = photos.regions(file, split)
        assert len(boxes) >= 2
        for left, top, right, bottom in boxes:
            times_used[top:bottom, left:right] += 1
    assert times_used.max() == 1


@pytest.mark.parametrize("split", SPLITS)
def test_crops_stay_inside_one_region(split):
    rng = np.random.default_rng(0)
    regions = photos.regions("coins.png", split)
    for _ in range(300):
        square = photos.choose_square(rng, "coins.png", split, (24, photos.CELL))
        assert any(
            square[0] >= box[0] and square[1] >= box[1] and square[2] <= box[2] and square[3] <= box[3]
            for box in regions
        )


def test_a_missing_photograph_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png.*scikit-image"):
        photos.photograph_path("nowhere.png")


def test_splits_have_their_own_fonts_and_handwriting():
    for one, other in combinations(SPLITS, 2):
        assert not set(glyphs.FONTS[one]) & set(glyphs.FONTS[other])
    assert sum(len(glyphs.handwritten_digits(split)[1]) for split in SPLITS) == 1797


def test_every_font_draws_every_character_differently():
    for split in SPLITS:
        for font in glyphs.font_glyphs("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", split):
            assert len({glyph.tobytes() for glyph in font}) == 36


def test_no_image_is_in_two_splits(micro):
    for task in MICRO.tasks:
        seen = [
            {
                hashlib.sha256(np.asarray(image)).digest()
                for image in MICRO.load_dataset(micro, task, split)["image"]
            }
            for split in SPLITS
        ]
        assert [len(images) for images in seen] == [MICRO.train, MICRO.val, MICRO.test]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_datasets_have_images_and_named_labels(micro):
    dataset = mini.load_dataset("mini-signs", "test", recipe="clip-micro_3")
    assert dataset.features["label"].names == list(TASKS["mini-signs"].classnames)
    assert dataset[0]["image"].size == (canvas.SIZE, canvas.SIZE)


def test_models_load_as_the_hub_s_do(micro):
    from transformers import CLIPModel, CLIPVisionModel

    CLIPModel.from_pretrained(micro / "pretrained")
    for folder in ("pretrained", *MICRO.tasks):
        tower, report = CLIPVisionModel.from_pretrained(micro / folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert tower(torch.zeros(2, 3, 32, 32)).pooler_output.shape == (2, MICRO.width)


def test_experts_have_moved_from_the_pretrained_model(micro):
    tensors = weights(micro)
    for task in MICRO.tasks:
        for name in (key for key in tensors if key.startswith(f"{task}/")):
            shared = name.removeprefix(f"{task}/")
            shared = shared if shared.startswith("vision_model.") else f"vision_model.{shared}"
            assert not torch.equal(tensors[name], tensors[f"pretrained/{shared}"]), name


def test_the_processor_gives_what_the_models_were_trained_on(micro):
    from transformers import CLIPProcessor

    processor = CLIPProcessor.from_pretrained(micro / "pretrained")
    dataset = MICRO.load_dataset(micro, "mini-digits", "test")
    pixels = processor(images=dataset[:4]["image"], return_tensors="pt")["pixel_values"]
    images, _ = MICRO.load_arrays(micro, "mini-digits", "test")
    torch.testing.assert_close(pixels, pixel_values(images[:4]), rtol=0, atol=1e-6)


def test_heads_are_those_that_fusionbench_makes(micro):
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

    from fusion_tinting.fusionbench import compat

    compat.apply()
    from fusion_bench.models.hf_clip import HFCLIPClassifier

    model = CLIPModel.from_pretrained(micro / "pretrained").eval()
    classifier = HFCLIPClassifier(model, CLIPProcessor.from_pretrained(micro / "pretrained"))
    task = TASKS["mini-signs"]
    classifier.set_classification_task(list(task.classnames), [text.format for text in task.templates])
    tokenizer = AutoTokenizer.from_pretrained(micro / "pretrained")
    ours = tiny_clip.zero_shot_head(model, tokenizer, task)
    torch.testing.assert_close(ours, classifier.zeroshot_weights, rtol=1e-4, atol=1e-5)


def test_a_second_call_finds_the_zoo(micro):
    before = (micro / "zoo.json").stat().st_mtime_ns
    assert mini.build(0, recipe="clip-micro_3") == micro
    assert (micro / "zoo.json").stat().st_mtime_ns == before


def test_a_killed_build_is_completed_once_by_builders_that_come_together(tmp_path):
    killed, _ = start_build(tmp_path, workers=1)
    unfinished = tmp_path / "mini" / f"{MICRO.name}-{MICRO.fingerprint()}-seed1{UNFINISHED}"
    wait_until((unfinished / "pretrained").exists)
    (worker,) = workers_of(killed)
    assert killed.is_alive()
    killed.kill()
    killed.join()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    first_part = (unfinished / "pretrained" / "model.safetensors").stat().st_mtime_ns
    folder = Path(str(unfinished).removesuffix(UNFINISHED))
    assert not folder.exists()

    builders = [start_build(tmp_path, workers=0), start_build(tmp_path, workers=0)]
    outputs = [forked.end(*builder, seconds=600) for builder in builders]
    assert {Path(said.split()[-1]) for said in outputs} == {folder}
    assert sum("Building" in said for said in outputs) == 1
    assert not list(tmp_path.rglob("*" + UNFINISHED))
    assert (folder / "pretrained" / "model.safetensors").stat().st_mtime_ns == first_part

    expected, theirs = weights(mini.build(1, progress=False, recipe=MICRO)), weights(folder)
    assert expected.keys() == theirs.keys()
    assert all(torch.equal(expected[name], theirs[name]) for name in expected)


def test_a_process_of_a_group_builds_in_workers(cache, monkeypatch):
    """In the group itself transformers would write a model in the first process alone."""

    class Asked(Exception):
        pass

    def worker(*_, **__):
        raise Asked

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(zoo, "ProcessPoolExecutor", worker)
    with pytest.raises(Asked):
        mini.build(7, progress=False, recipe=MICRO)


def test_another_seed_makes_other_models(micro):
    first, other = weights(micro), weights(mini.build(1, progress=False, recipe=MICRO))
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("fc1.weight"))


def test_a_failing_build_says_why_and_leaves_no_zoo(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_TINTING_CACHE", str(tmp_path))
    impossible = replace(MICRO, name="impossible", tasks=("mini-nothing",))
    with pytest.raises(RuntimeError, match="mini-nothing"):
        mini.build(0, progress=False, recipe=impossible)
    assert not zoo.folder_of(impossible, 0).exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "`seed` should be"),
        ({"seed": True}, "`seed` should be"),
        ({"seed": 1.5}, "whole number"),
        ({"recipe": "clip-mikro_3"}, "Did you mean `clip-micro_3`"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        mini.build(**wrong)


@pytest.mark.parametrize(
    ("task", "split", "name", "message"),
    [
        ("mini-sings", "test", "clip-micro_3", "Did you mean `mini-signs`"),
        ("mini-signs", "validation", "clip-micro_3", "`train`, `val`, `test`"),
        ("sentimental", "test", "roberta-mini_4", "Did you mean `sentiment`"),
        ("normals", "test", "nyuv2-micro_3", "Did you mean `normal`"),
    ],
)
def test_unknown_tasks_and_splits_are_named(task, split, name, message):
    with pytest.raises(ValueError, match=message):
        mini.load_dataset(task, split, recipe=name)


def test_recipes_that_differ_have_zoos_of_their_own():
    assert replace(MICRO, expert_steps=11).fingerprint() != MICRO.fingerprint()
    assert replace(MICRO, minutes="an hour", workers=5).fingerprint() == MICRO.fingerprint()


def test_every_recipe_is_known_by_its_name():
    for name in recipe.MODULES:
        pytest.importorskip("open_clip") if name.startswith("openclip") else None
        assert recipe.find(name).name == name
