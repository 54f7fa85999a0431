"""The NYUv2 pools over a zoo of scenes: folders and a tiny architecture, the rest is the real pools'."""

from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.fusionbench.pools.nyuv2 import NYUv2ModelPool
from fusion_tinting.fusionbench.taskpools.nyuv2 import TintedNYUv2TaskPool
from fusion_tinting.mini import scenes, scenes_zoo
from fusion_tinting.mini.once import ZOO_OPTIONS
from fusion_tinting.mini.tiny_dense import CHANNELS, TinyDilatedResNet, decoder

TINY = "tiny"
"""The only encoder here."""


class MiniNYUv2ModelPool(NYUv2ModelPool):
    """An `NYUv2ModelPool` whose models are folders of a zoo, built when missing.

    Args:
        models: name -> as in the real pool; `ckpt_path` names a folder inside the zoo, or any other.
        zoo_seed: the zoo's seed.
        recipe: `nyuv2-mini_3` or the tiny `nyuv2-micro_3`.
    """

    _config_mapping = NYUv2ModelPool._config_mapping | ZOO_OPTIONS
    image_size = scenes.SIZE

    def __init__(self, models, *, zoo_seed: int = 0, recipe: str = "nyuv2-mini_3", **kwargs):
        folder = scenes_zoo.build(zoo_seed, recipe)
        models = OmegaConf.create(models)
        for model in models.values():
            inside = folder / Path(model.get("ckpt_path") or "no checkpoint")
            if inside.exists():
                model.ckpt_path = str(inside)
        super().__init__(models, **kwargs)
        self.zoo_seed, self.recipe = zoo_seed, recipe

    def make_encoder(self, name: str, pretrained: bool) -> nn.Module:
        """The tiny residual encoder; there is nothing to download."""
        if name != TINY:
            raise unknown("encoder", name, [TINY])
        if pretrained:
            raise ValueError("The mini's `_pretrained_` must have a `ckpt_path`; there is no download.")
        return TinyDilatedResNet()

    def make_decoder(self, task: str) -> nn.Sequential:
        """The tiny decoder of a task."""
        if task not in CHANNELS:
            raise unknown("task", task, CHANNELS)
        return decoder(task)


class MiniNYUv2TaskPool(TintedNYUv2TaskPool):
    """Evaluates on a zoo's scenes; beside the task pool's own options it takes the zoo's two."""

    _config_mapping = TintedNYUv2TaskPool._config_mapping | ZOO_OPTIONS

    def __init__(self, test_datasets, *, zoo_seed: int = 0, recipe: str = "nyuv2-mini_3", **kwargs):
        super().__init__(test_datasets, **kwargs)
        self.zoo_seed, self.recipe = zoo_seed, recipe
