"""Our YAML in FusionBench's configuration, and the hub's pools resolved offline."""

import importlib
import json
from pathlib import Path

import pytest
from command import FUSION_BENCH, composed, run
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


def plain(node) -> dict:
    return OmegaConf.to_container(node, resolve=False)


@pytest.mark.quick
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
    ours = plain(composed(f"modelpool=clip-vit-{short}_{tasks}").modelpool)
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
    config = composed(f"modelpool=clip-vit-{short}_{tasks}", f"taskpool=clip-vit-{short}_{tasks}")
    assert config.taskpool.test_datasets == config.modelpool.test_datasets
    base = config.modelpool.models._pretrained_
    assert config.taskpool.clip_model.pretrained_model_name_or_path == base
    assert config.taskpool.processor.pretrained_model_name_or_path == base


@pytest.mark.parametrize(("short", "tasks"), HUB_POOLS)
def test_every_data_set_id_has_the_namespace_that_datasets_wants(short, tasks):
    config = plain(composed(f"modelpool=clip-vit-{short}_{tasks}").modelpool)
    loads = [n for n in nodes(config) if n.get("_target_") == "datasets.load_dataset"]
    assert loads
    for node in loads:
        repository = node["path"] if "path" in node else node["_args_"][0]
        assert repository.count("/") == 1, repository


@pytest.mark.parametrize("short", BACKBONES)
def test_validation_sets_are_a_part_of_the_training_split(short):
    config = plain(composed(f"modelpool=clip-vit-{short}_TA8").modelpool)
    assert list(config["val_datasets"]) == list(TASKS)[:8]
    for task, val in config["val_datasets"].items():
        assert val["dataset"] == config["train_datasets"][task]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment under which the hub client finds the tiny models and data sets."""
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize("name", [f"clip-vit-{short}_{tasks}" for short, tasks in HUB_POOLS])
def test_every_hub_pool_loads_from_a_cache_offline(hub, name):
    with read_offline(Path(hub["HF_HOME"])):
        config = composed(f"modelpool={name}", f"taskpool={name}")
        pool = instantiate(config.modelpool)
        pool.load_processor()
        pool.load_clip_model("_pretrained_")
        for model in ("_pretrained_", *pool.model_names):
            pool.load_model(model)
        for split in ("train", "val", "test"):
            for task in getattr(pool, f"{split}_dataset_names"):
                dataset = getattr(pool, f"load_{split}_dataset")(task)
                assert {"image", "label"} <= set(dataset[0]), (task, dataset[0])
        instantiate(config.taskpool)


def require_scored(report: dict, more: set[str]) -> None:
    """A report of the eight tasks."""
    assert set(report) == {"model_info", *list(TASKS)[:8], "average", *more}
    assert all(0 <= report[task]["accuracy"] <= 1 for task in list(TASKS)[:8])


POOLS = ("modelpool=clip-vit-b32_TA8", "taskpool=clip-vit-b32_TA8")


def test_the_program_merges_and_evaluates_the_hubs_checkpoints_offline(hub, fuse):
    with read_offline(Path(hub["HF_HOME"])):
        loading = "taskpool.dataloader_kwargs.num_workers=0"
        require_scored(fuse("method=simple_average", *POOLS, loading)["report"], set())


def test_the_command_adapts_and_evaluates_the_hubs_checkpoints_offline(hub, tmp_path):
    """In a process of its own, which the environment tells where the hub client's files are."""
    run(
        *(FUSION_BENCH, *POOLS, "method=model_tinting", "method.steps=2", "method.adapt_split=val"),
        *("taskpool.dataloader_kwargs.num_workers=0", "fabric.accelerator=cpu"),
        f"report_save_path={tmp_path}/report.json",
        cwd=tmp_path,
        env=hub,
    )
    require_scored(json.loads((tmp_path / "report.json").read_text()), {"baselines"})
