"""The mini pools are ordinary pools for FusionBench."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fusion_tinting.fusionbench import compat

compat.apply()

from fusion_bench.tasks.clip_classification import get_classnames_and_templates  # noqa: E402
from fusion_bench.utils import instantiate  # noqa: E402

from fusion_tinting.mini import pools as mini_pools  # noqa: E402
from fusion_tinting.mini import recipe  # noqa: E402
from fusion_tinting.mini.pictures.tasks import TASKS  # noqa: E402

CONFIGS = Path(__file__).parents[2] / "configs"


def pools(name: str, *overrides: str):
    """The composed configuration with both pools of a name."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(overrides=[f"+modelpool={name}", f"+taskpool={name}", *overrides])


@pytest.fixture(scope="module")
def modelpool(cache):
    return instantiate(pools("clip-micro_3").modelpool)


@pytest.mark.parametrize("name", recipe.MODULES)
def test_configurations_name_the_recipe_s_tasks(name):
    config = pools(name, "modelpool.zoo_seed=3")
    tasks = recipe.find(name).tasks
    assert tuple(config.modelpool.models) == ("_pretrained_", *tasks)
    for pool, split in (
        ("modelpool", "train"),
        ("modelpool", "val"),
        ("modelpool", "test"),
        ("taskpool", "test"),
    ):
        datasets = OmegaConf.to_container(config[pool][f"{split}_datasets"], resolve=True)
        assert tuple(datasets) == tasks
        for task, dataset in datasets.items():
            assert dataset == {
                "_target_": "fusion_tinting.mini.load_dataset",
                "task": task,
                "split": split,
                "seed": 3,
                "recipe": name,
            }
    assert config.taskpool.zoo_seed == 3


def test_the_task_pool_stands_alone():
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=["+taskpool=clip-mini_8"])
    assert config.taskpool.zoo_seed == 0


@pytest.mark.parametrize("name", ["clip-micro_3", "clip-mini_20"])
def test_a_method_can_be_given_the_val_split_in_place_of_the_test_split(name):
    on_val = "test_datasets=${modelpool.val_datasets}"
    config = pools(name, f"modelpool.{on_val}")
    assert {dataset.split for dataset in config.modelpool.test_datasets.values()} == {"val"}
    assert {dataset.split for dataset in config.taskpool.test_datasets.values()} == {"test"}
    config = pools(name, f"taskpool.{on_val}", "modelpool.zoo_seed=3")
    assert OmegaConf.to_container(config.taskpool.test_datasets, resolve=True) == {
        task: {
            "_target_": "fusion_tinting.mini.load_dataset",
            "task": task,
            "split": "val",
            "seed": 3,
            "recipe": name,
        }
        for task in recipe.find(name).tasks
    }


@pytest.mark.parametrize("task", TASKS)
def test_class_names_and_templates_are_registered(task):
    mini_pools.register_tasks()
    classnames, templates = get_classnames_and_templates(task)
    assert tuple(classnames) == TASKS[task].classnames
    assert all(classnames[0] in template(classnames[0]) for template in templates)


def test_the_model_pool_loads_models_processor_and_data(modelpool):
    pretrained = modelpool.load_model("_pretrained_")
    for task in modelpool.model_names:
        expert = modelpool.load_model(task)
        assert [name for name, _ in expert.named_parameters()] == [
            name for name, _ in pretrained.named_parameters()
        ]
        assert len(modelpool.load_val_dataset(task)) == recipe.find("clip-micro_3").val
    assert modelpool.load_clip_model("_pretrained_").logit_scale.item() > 0
    text = modelpool.load_processor()(text=["a round bar road sign"], return_tensors="pt")
    assert text["input_ids"].shape == (1, 7)  # five words between start and end


def test_the_task_pool_evaluates_a_plain_model(modelpool):
    taskpool = instantiate(pools("clip-micro_3").taskpool)
    report = taskpool.evaluate(modelpool.load_model("_pretrained_"))
    scores = [report[task]["accuracy"] for task in modelpool.model_names]
    assert all(0 <= score <= 1 for score in scores)
    assert report["average"]["accuracy"] == pytest.approx(torch.tensor(scores).mean().item())
