"""Our YAML in FusionBench's configuration, and the hub's pools resolved offline."""

import importlib
from functools import cache

import pytest
from command import composed
from fusion_bench.utils import instantiate
from hub import TASKS, make_hub, read_offline
from omegaconf import OmegaConf

from fusion_tinting._hydra import configs

HYDRA_GROUPS = ("method", "modelpool", "taskpool")
# Files whose name starts with _ are parts of others.
CHOICES = [
    (group, file.relative_to(configs() / group).with_suffix("").as_posix())
    for group in HYDRA_GROUPS
    for file in sorted((configs() / group).rglob("[!_]*.yaml"))
]
SETS = {"TA8": 8, "TALL14": 14, "TALL20": 20}
BACKBONES = {
    "b32": "clip-vit-base-patch32",
    "b16": "clip-vit-base-patch16",
    "l14": "clip-vit-large-patch14",
}
HUB_POOLS = [(short, tasks) for short in BACKBONES for tasks in SETS]


def nodes(config):
    """Every mapping in a nested configuration."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from nodes(value)


@cache
def hub_pools(short: str, tasks: str):
    """The composed configuration with both pools of a backbone; not to be changed."""
    return composed(f"modelpool=clip-vit-{short}_{tasks}", f"taskpool=clip-vit-{short}_{tasks}")


def plain(node) -> dict:
    return OmegaConf.to_container(node, resolve=False)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_file_composes_and_its_targets_exist(group, name):
    config = plain(composed(f"{group}={name}")[group])
    assert "_target_" in config
    for node in nodes(config):
        if "_target_" in node:
            module, attribute = node["_target_"].rsplit(".", 1)
            if attribute == "from_pretrained":
                module, attribute = module.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), attribute), node["_target_"]


@pytest.mark.parametrize(("short", "tasks"), HUB_POOLS)
def test_hub_model_pools_are_fusionbenchs_own_but_for_what_no_longer_resolves(short, tasks):
    ours = plain(hub_pools(short, tasks).modelpool)
    stock = plain(composed(f"modelpool=CLIPVisionModelPool/{BACKBONES[short]}_{tasks}").modelpool)
    assert ours["models"] == stock["models"]
    assert ours["_target_"] == stock["_target_"]
    assert ours["processor"] == ours["models"]["_pretrained_"] == f"openai/{BACKBONES[short]}"
    for split in ("train_datasets", "test_datasets"):
        stock[split]["mnist"]["path"] = "ylecun/mnist"
        stock[split]["svhn"]["_args_"] = ["ufldl-stanford/svhn", "cropped_digits"]
        assert ours[split] == stock[split]
        assert list(ours[split]) == list(TASKS)[: SETS[tasks]]


@pytest.mark.parametrize(("short", "tasks"), HUB_POOLS)
def test_hub_task_pools_match_their_model_pools(short, tasks):
    config = hub_pools(short, tasks)
    assert config.taskpool.test_datasets == config.modelpool.test_datasets
    base = config.modelpool.models._pretrained_
    assert config.taskpool.clip_model.pretrained_model_name_or_path == base
    assert config.taskpool.processor.pretrained_model_name_or_path == base


@pytest.mark.parametrize(("short", "tasks"), HUB_POOLS)
def test_every_data_set_id_has_the_namespace_that_datasets_wants(short, tasks):
    config = plain(hub_pools(short, tasks).modelpool)
    loads = [n for n in nodes(config) if n.get("_target_") == "datasets.load_dataset"]
    assert loads
    for node in loads:
        repository = node["path"] if "path" in node else node["_args_"][0]
        assert repository.count("/") == 1, repository


@pytest.mark.parametrize("short", BACKBONES)
def test_validation_sets_are_a_part_of_the_training_split(short):
    config = plain(hub_pools(short, "TA8").modelpool)
    assert list(config["val_datasets"]) == list(TASKS)[:8]
    for task, val in config["val_datasets"].items():
        assert val["dataset"] == config["train_datasets"][task]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of the hub client's files: tiny models and data sets."""
    folder = tmp_path_factory.mktemp("hub")
    make_hub(folder)
    return folder


@pytest.fixture(scope="module")
def loaded() -> list:
    """What was loaded, by its configuration: pools share most of it."""
    return []


@pytest.mark.parametrize(("short", "tasks"), HUB_POOLS)
def test_every_hub_pool_loads_from_a_cache_offline(hub, loaded, short, tasks):
    config = hub_pools(short, tasks)
    whole = plain(config.modelpool)
    with read_offline(hub):
        pool = instantiate(config.modelpool)
        pool.load_processor()
        pool.load_clip_model("_pretrained_")
        for name, model in whole["models"].items():
            if model not in loaded:
                pool.load_model(name)
                loaded.append(model)
        for split in ("train", "val", "test"):
            for task, data in (whole.get(f"{split}_datasets") or {}).items():
                if (task, data) not in loaded:
                    dataset = getattr(pool, f"load_{split}_dataset")(task)
                    assert {"image", "label"} <= set(dataset[0]), (task, dataset[0])
                    loaded.append((task, data))
        instantiate(config.taskpool)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (["method=simple_average"], set()),
        (["method=model_tinting", "method.steps=2", "method.adapt_split=val"], {"baselines"}),
    ],
    ids=["simple_average", "model_tinting"],
)
def test_the_program_merges_and_evaluates_the_hubs_checkpoints_offline(hub, fuse, method, more):
    """Of the tasks with the fewest classes, whose heads are made soon."""
    tasks = ("eurosat", "svhn", "gtsrb", "mnist")
    pools = ["modelpool=clip-vit-b32_TA8", "taskpool=clip-vit-b32_TA8"]
    for task in set(list(TASKS)[:8]) - set(tasks):
        pools += [f"~modelpool.models.{task}", f"~taskpool.test_datasets.{task}"]
    with read_offline(hub):
        report = fuse(*method, *pools, "taskpool.dataloader_kwargs.num_workers=0")["report"]
    assert set(report) == {"model_info", *tasks, "average", *more}
    assert all(0 <= report[task]["accuracy"] <= 1 for task in tasks)
