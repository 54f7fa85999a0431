"""FusionBench's pools over a zoo: names of folders become paths, the rest is the stock pool."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_bench.tasks.clip_classification import CLIPTemplateFactory
from fusion_bench.utils import import_object
from omegaconf import OmegaConf
from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.fusionbench.pools.nyuv2 import NYUv2ModelPool
from fusion_tinting.mini import zoo
from fusion_tinting.mini.pictures.tasks import TASKS
from fusion_tinting.mini.scenes import render
from fusion_tinting.mini.scenes.tiny_dense import CHANNELS, TinyDilatedResNet, decoder

IN_A_ZOO = ("models", "processor", "clip_model", "tokenizer", "classification_heads")
"""Options of the stock pools that name folders or files of models."""

PATH_KEYS = ("config_path", "ckpt_path", "pretrained_model_name_or_path")
"""Where a model's own configuration names one; its other strings stay, such as a `dataset_name`."""


def pool_over_zoo(pool: str, recipe: str, zoo_seed: int = 0, **options: Any) -> Any:
    """Return a FusionBench pool whose models are a zoo's, built when missing.

    Args:
        pool: Class of the model pool or task pool, such as `fusion_bench.modelpool.CLIPVisionModelPool`.
        recipe: Name of the zoo's recipe.
        zoo_seed: Its seed.
        **options: The pool's own. Names of folders or files inside the zoo become paths: the options
            `IN_A_ZOO` and, in a model's configuration, `PATH_KEYS`. Anything else stays as it is.

    Raises:
        ValueError: As `mini.build`.
    """
    folder = zoo.build(zoo_seed, recipe=recipe)
    for key in set(IN_A_ZOO) & options.keys():
        value = options[key]
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        paths = _with_paths(folder, plain)
        options[key] = OmegaConf.create(paths) if isinstance(paths, Mapping) else paths
    return import_object(pool)(**options)


def _with_paths(folder: Path, value: Any) -> Any:
    """Return a model's name, or models by name, with paths for what is in the zoo."""
    if isinstance(value, str):
        return str(folder / value) if (folder / value).exists() else value
    if not isinstance(value, Mapping):
        return value
    keys = PATH_KEYS if set(PATH_KEYS) & value.keys() else value.keys()
    return {key: _with_paths(folder, each) if key in keys else each for key, each in value.items()}


class TinyNYUv2ModelPool(NYUv2ModelPool):
    """NYUv2's model pool with the mini's architecture: the stock one has ResNet-50's alone."""

    image_size = render.SIZE

    def make_encoder(self, name: str, pretrained: bool) -> nn.Module:
        """Return the tiny residual encoder.

        Args:
            name: `tiny`, the only one here.
            pretrained: Must be false: there is nothing to download.

        Raises:
            ValueError: Another encoder, or one without a checkpoint.
        """
        if name != "tiny":
            raise unknown("encoder", name, ["tiny"])
        if pretrained:
            raise ValueError("The mini's `_pretrained_` must have a `ckpt_path`; there is no download.")
        return TinyDilatedResNet()

    def make_decoder(self, task: str) -> nn.Sequential:
        """Return the tiny decoder of a task.

        Raises:
            ValueError: There is no such task.
        """
        if task not in CHANNELS:
            raise unknown("task", task, CHANNELS)
        return decoder(task)


def register_tasks() -> None:
    """Add the tasks' class names and caption templates to FusionBench's table, which its pools read."""
    for task in TASKS.values():
        # Straight into the table: FusionBench 0.2.33's `register_dataset` stores no templates.
        CLIPTemplateFactory._dataset_mapping[task.name] = {
            "classnames": list(task.classnames),
            "templates": [template.format for template in task.templates],
        }


register_tasks()
