"""FusionBench's pool of text classifiers over a small GLUE: names become folders, the rest is stock."""

from __future__ import annotations

from pathlib import Path

from fusion_bench.modelpool import SequenceClassificationModelPool
from omegaconf import OmegaConf

from fusion_tinting.mini import glue


class MiniTextModelPool(SequenceClassificationModelPool):
    """A `SequenceClassificationModelPool` whose models are folders of `glue.build`, made when missing.

    Args:
        models: model name -> folder inside it, `base` or `experts/<task>`, or what the stock pool takes.
        tokenizer: folder inside it.
        zoo_seed: the seed.
    """

    _config_mapping = SequenceClassificationModelPool._config_mapping | {"zoo_seed": "zoo_seed"}

    def __init__(self, models, *, tokenizer="base", zoo_seed=0, **kwargs):
        folder = glue.build(zoo_seed)
        models = {name: _loads("RobertaModel", folder, model) for name, model in models.items()}
        tokenizer = _loads("AutoTokenizer", folder, tokenizer)
        super().__init__(OmegaConf.create(models), tokenizer=OmegaConf.create(tokenizer), **kwargs)
        self.zoo_seed = zoo_seed


def _loads(kind: str, folder: Path, name):
    """What instantiates a folder of the zoo; whatever names none stays as it is."""
    if not isinstance(name, str) or not (folder / name).is_dir():
        return name
    found = {
        "_target_": f"transformers.{kind}.from_pretrained",
        "pretrained_model_name_or_path": str(folder / name),
    }
    return found | ({"add_pooling_layer": False} if kind == "RobertaModel" else {})
