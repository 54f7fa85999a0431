"""OpenCLIP's image encoders with classification heads: `OpenCLIPVisionModelPool`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from fusion_bench.modelpool import OpenCLIPVisionModelPool
from torch import nn

from fusion_tinting.errors import abbreviate
from fusion_tinting.families import open_clip, open_clip_files
from fusion_tinting.families.family import Models
from fusion_tinting.fusionbench.pools import PoolFamily

PATHS = ("pickle_path", "state_dict_path")


class CheckedOpenCLIPVisionModelPool(OpenCLIPVisionModelPool):
    """FusionBench's pool, reading its files without running what is in them and without any download.

    Where a configuration names `x.pt` and there is an `x.safetensors`, which
    `python -m fusion_tinting.convert` has made, that is read.

    Args:
        trust_pickles: whether pickles of whole modules, as released, may be loaded.
        model_name: architecture of the files that do not tell theirs, such as `ViT-B-32`.
        model_dir: of the configuration's interpolations alone.
        *args, **kwargs: as the stock class.
    """

    _config_mapping = OpenCLIPVisionModelPool._config_mapping | {
        name: name for name in ("trust_pickles", "model_name", "model_dir")
    }

    def __init__(
        self,
        *args: Any,
        trust_pickles: bool = False,
        model_name: str | None = None,
        model_dir: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.trust_pickles, self.model_name, self.model_dir = trust_pickles, model_name, model_dir

    @property
    def classification_heads(self) -> Mapping:
        """Task -> the file of its head."""
        return self._classification_heads or {}

    def path(self, name: str) -> Path:
        """Return the file of a model.

        Raises:
            ValueError: a configuration without one.
        """
        return self._file(name)[0]

    def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> open_clip.VisualEncoder:
        """Load an encoder; raises as `families.open_clip_files.load_encoder`."""
        path, architecture = self._file(model_name_or_config)
        return open_clip_files.load_encoder(path, architecture, self.trust_pickles)

    def load_classification_head(
        self, model_name_or_config: Any, *args: Any, **kwargs: Any
    ) -> open_clip.ClassificationHead:
        """Load a head; raises as `families.open_clip_files.load_head`."""
        path = self.classification_heads.get(model_name_or_config, model_name_or_config)
        return open_clip_files.load_head(path, self.trust_pickles)

    @property
    def test_processor(self) -> Any:
        """Preprocessing as the pre-trained model's."""
        if self._test_processor is None:
            encoder = self.load_pretrained_or_first_model()
            self._train_processor, self._test_processor = encoder.train_preprocess, encoder.val_preprocess
        return self._test_processor

    @property
    def train_processor(self) -> Any:
        """Augmentation as the pre-trained model's."""
        return self.test_processor and self._train_processor

    def save_model(self, model: nn.Module, path: str, *args: Any, **kwargs: Any) -> None:
        """Write a folder with the encoder, `model.safetensors`; of a tinted model also the artifact."""
        if isinstance(model, open_clip.TintedOpenCLIP):
            model.save_pretrained(path)
        else:
            model.save(Path(path) / "model.safetensors")

    def _file(self, name_or_config: Any) -> tuple[Path, str | None]:
        config = name_or_config
        if isinstance(config, str) and config in self._models:
            config = self._models[config]
        if isinstance(config, str):
            return Path(config), self.model_name
        for key in PATHS:
            if isinstance(config, Mapping) and key in config:
                return Path(config[key]), config.get("model_name", self.model_name)
        raise ValueError(
            f"The model `{name_or_config}` must be a path or have a `pickle_path` or `state_dict_path`. "
            f"Found {config!r}."
        )


class OpenClipPool(PoolFamily):
    """The experts are visual towers; each task has the classification head that it was trained with."""

    name: ClassVar[str] = "open_clip"

    def models(self) -> Models:
        """Return what the pool loads: encoders and heads."""
        return replace(super().models(), load_head=self.pool.load_classification_head)

    def check(self) -> None:
        """Refuse the stock pool, and files that are not there.

        Raises:
            ValueError: naming our pool, a task without head or the files.
        """
        pool, ours = self.pool, CheckedOpenCLIPVisionModelPool
        if not isinstance(pool, ours):
            raise ValueError(
                f"The model pool {type(pool).__name__} runs the code in the pickles that it reads, and "
                "downloads weights that it then replaces. Use a model pool of fusion_tinting, such as "
                "`modelpool=openclip-vit-b32_TA8`, or add "
                f"`modelpool._target_={ours.__module__}.{ours.__name__}`."
            )
        headless = [task for task in self.tasks if task not in pool.classification_heads]
        if headless:
            raise ValueError(f"The model pool has no `classification_heads` for {headless}.")
        files = [pool.path(name) for name in pool.all_model_names]
        files += [Path(pool.classification_heads[task]) for task in self.tasks]
        missing = [str(file) for file in files if not open_clip_files.converted(file).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} checkpoint(s) of the model pool are missing: {abbreviate(missing)}. Set "
                "`modelpool.model_dir` to the folder of the released or converted ones."
            )

    def load(self) -> None:
        """Load the pre-trained encoder and the heads.

        Raises:
            ValueError: a head that is not as wide as the embeddings; or as the pool's loading.
        """
        super().load()
        width = self.pretrained.architecture.embed_dim
        for task, head in self.heads.items():
            if head.in_features != width:
                raise ValueError(
                    f"The head of `{task}`, `{self.pool.classification_heads[task]}`, takes embeddings of "
                    f"width {head.in_features}; the pre-trained model's are {width} wide."
                )
