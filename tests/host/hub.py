"""Tiny stand-ins for the hub's models and data sets, in a cache folder laid out as the hub client's.

The real configurations name repositories such as `tanganke/clip-vit-base-patch32_dtd`; with the
environment that `make_hub` returns they resolve here, offline, and every file has the real one's
name, tensor names and columns.
"""

import json
import string
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets.arrow_writer import ArrowWriter
from fusion_bench.tasks.clip_classification import get_num_classes
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

ARCHITECTURES = ("clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14")

# Task -> repository and configuration of its data set. The first eight are TA8, with six more TALL14.
TASKS = {
    "sun397": ("tanganke/sun397", "default"),
    "stanford-cars": ("tanganke/stanford_cars", "default"),
    "resisc45": ("tanganke/resisc45", "default"),
    "eurosat": ("tanganke/eurosat", "default"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits"),
    "gtsrb": ("tanganke/gtsrb", "default"),
    "mnist": ("ylecun/mnist", "mnist"),
    "dtd": ("tanganke/dtd", "default"),
    "oxford_flowers102": ("dpdl-benchmark/oxford_flowers102", "default"),
    "pcam": ("1aurent/PatchCamelyon", "default"),
    "fer2013": ("clip-benchmark/wds_fer2013", "default"),
    "oxford-iiit-pet": ("timm/oxford-iiit-pet", "default"),
    "stl10": ("tanganke/stl10", "default"),
    "cifar100": ("tanganke/cifar100", "default"),
    "cifar10": ("tanganke/cifar10", "default"),
    "food101": ("ethz/food101", "default"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "fashion_mnist"),
    "emnist_letters": ("tanganke/emnist_letters", "default"),
    "kmnist": ("tanganke/kmnist", "default"),
    "rendered-sst2": ("nateraw/rendered-sst2", "default"),
}
SPLITS = {"train": 40, "validation": 8, "test": 8}  # FusionBench's val is a tenth of train
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT_LENGTH = 160  # the longest prompt in characters: the tokenizer below knows nothing longer


def make_hub(folder: Path, architectures=ARCHITECTURES, tasks=tuple(TASKS)) -> dict[str, str]:
    """Fill `folder` and return the environment variables under which the hub client finds it."""
    for architecture in architectures:
        make_models(folder / "hub", architecture, tasks)
    for task in tasks:
        make_dataset(folder / "datasets", task)
    return {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


@contextmanager
def read_offline(folder: Path):
    """Within the context this process reads the hub client's files from here too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        yield folder


def make_models(hub: Path, architecture: str, tasks) -> None:
    """OpenAI's CLIP with its processor, and per task an expert: its vision tower a little off."""
    torch.manual_seed(0)
    patch = int(architecture[-2:])
    tower = {"intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        vision_config={
            **tower,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "patch_size": patch,
            "image_size": 2 * patch,
        },
        text_config={
            **tower,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": TEXT_LENGTH,
            **special_ids(),
        },
        projection_dim=8,
    )
    model = CLIPModel(config)
    pretrained = snapshot(hub, f"models--openai--{architecture}")
    model.save_pretrained(pretrained)
    add_position_ids(pretrained / "model.safetensors")
    write_processor(pretrained, image_size=2 * patch)

    for task in tasks:
        expert = deepcopy(model.vision_model)
        for parameter in expert.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        folder = snapshot(hub, f"models--tanganke--{architecture}_{task}")
        expert.save_pretrained(folder)
        add_prefix(folder / "model.safetensors")


def snapshot(hub: Path, repository: str) -> Path:
    """The folder of a repository's files at its only commit."""
    (hub / repository / "refs").mkdir(parents=True)
    (hub / repository / "refs" / "main").write_text(COMMIT)
    folder = hub / repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def add_prefix(file: Path) -> None:
    """The experts were saved by transformers 4, with one level more in the vision model."""
    tensors = {f"vision_model.{name}": value for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def add_position_ids(file: Path) -> None:
    """OpenAI's checkpoints still hold these two buffers, which today's models lack."""
    tensors = load_file(file)
    for tower in ("vision_model", "text_model"):
        positions = len(tensors[f"{tower}.embeddings.position_embedding.weight"])
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(tensors, file, metadata={"format": "pt"})


def vocabulary() -> dict[str, int]:
    """CLIP's byte-level vocabulary before any merge, for ASCII: a character, or one that ends a word."""
    characters = [c for c in string.printable if not c.isspace()]
    tokens = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def special_ids() -> dict[str, int]:
    ids = vocabulary()
    start, end = ids["<|startoftext|>"], ids["<|endoftext|>"]
    return {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}


def write_processor(folder: Path, image_size: int) -> None:
    """The image processor's and the tokenizer's files, under the names on the hub."""
    files = {
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True, "size": {"shortest_edge": image_size}, "resample": 3,
            "do_center_crop": True, "crop_size": {"height": image_size, "width": image_size},
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "vocab.json": vocabulary(),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH,
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def make_dataset(cache: Path, task: str) -> None:
    """A built data set as `datasets` keeps it: offline it reads these and no repository snapshot."""
    repository, config = TASKS[task]
    namespace, name = repository.split("/")
    name = datasets.naming.camelcase_to_snakecase(name)
    folder = cache / f"{namespace}___{name}" / config / "0.0.0" / COMMIT
    folder.mkdir(parents=True)

    image, label = ("jpg", "cls") if task == "fer2013" else ("image", "label")
    features = {
        image: datasets.Image(),
        label: datasets.Value("bool" if task == "pcam" else "int64"),
    }
    if task == "fer2013":  # a web data set
        features |= {"__key__": datasets.Value("string"), "__url__": datasets.Value("string")}
    features = datasets.Features(features)

    rng = np.random.default_rng(0)
    splits = datasets.SplitDict(dataset_name=name)
    for split, length in SPLITS.items():
        with ArrowWriter(features=features, path=str(folder / f"{name}-{split}.arrow")) as writer:
            for i in range(length):
                row = {
                    image: Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)),
                    label: int(rng.integers(get_num_classes(task))),
                    "__key__": str(i),
                    "__url__": split,
                }
                writer.write({column: row[column] for column in features})
            examples, size = writer.finalize()
        splits.add(datasets.SplitInfo(split, size, examples, dataset_name=name))
    datasets.DatasetInfo(
        features=features, splits=splits, dataset_name=name, config_name=config, version="0.0.0"
    ).write_to_directory(str(folder))
