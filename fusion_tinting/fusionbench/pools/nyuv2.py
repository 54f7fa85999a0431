"""NYUv2's segmentation, depth and normals: `NYUv2ModelPool`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from fusion_bench.dataset.nyuv2 import NYUv2
from fusion_bench.modelpool import NYUv2ModelPool as StockModelPool
from fusion_bench.models.nyuv2 import resnet
from fusion_bench.models.nyuv2.aspp import DeepLabHead
from fusion_bench.models.nyuv2.lightning_module import NYUv2Model
from fusion_bench.models.nyuv2.resnet_dilated import resnet_dilated
from torch import nn

from fusion_tinting.errors import unknown
from fusion_tinting.families import dense
from fusion_tinting.families.family import Models
from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.run.files import write_tensors


class NYUv2ModelPool(StockModelPool):
    """FusionBench's pool, with no download where `ckpt_path` is given, and checkpoints that are checked.

    A checkpoint is a Lightning one of FusionBench's `nyuv2_mtl_train`, a state dict of the same names
    (`encoder.*`, `decoders.<task>.*`), or safetensors; of `_pretrained_` also torchvision's own ResNet
    file. Without `ckpt_path`, `_pretrained_` is what torchvision trained on ImageNet, downloaded as in the
    stock pool.

    Args:
        models: name -> `encoder`, `decoders` (a list of tasks) and `ckpt_path`.
        data_dir: for the data sets' configurations to refer to.

    Attributes:
        image_size: of the outputs, which are resized to it.
    """

    _config_mapping = StockModelPool._config_mapping | {"data_dir": "data_dir"}
    image_size: tuple[int, int] = NYUv2Model.image_size

    def __init__(self, models: Any, *, data_dir: str | None = None, **kwargs: Any):
        super().__init__(models, **kwargs)
        self.data_dir = data_dir

    def load_model(self, model_config: Any, encoder_only: bool = True) -> nn.Module:
        """Load the encoder, or a whole `NYUv2Model`.

        Args:
            model_config: name of a model in the pool, or its configuration.
            encoder_only: whether to leave the decoders out.

        Raises:
            ValueError: an encoder or task that FusionBench does not know; an expert without `ckpt_path`;
                a checkpoint of another architecture or that lacks a tensor, named.
        """
        config = self.get_model_config(model_config) if isinstance(model_config, str) else model_config
        path = config.get("ckpt_path")
        tasks = [] if encoder_only else config.get("decoders") or []
        if path is None and tasks:
            raise ValueError(f"The model {config} has no `ckpt_path`, so that its decoders are unknown.")
        model = NYUv2Model(
            self.make_encoder(config.encoder, pretrained=path is None),
            nn.ModuleDict({task: self.make_decoder(task) for task in tasks}),
        )
        model.image_size = self.image_size
        if path is not None:
            tensors = dense.load_tensors(path)
            whole = any(name.startswith("encoder.") for name in tensors)
            dense.fill(model.encoder, tensors, "encoder." if whole else "", path)
            dense.fill(model.decoders, tensors, "decoders.", path)
        return model.encoder if encoder_only else model

    def make_encoder(self, name: str, pretrained: bool) -> nn.Module:
        """Make a dilated ResNet."""
        if not callable(getattr(resnet, name, None)):
            raise unknown("encoder", name, [n for n in vars(resnet) if n.startswith(("resnet", "wide"))])
        return resnet_dilated(name, pretrained=pretrained)

    def make_decoder(self, task: str) -> nn.Sequential:
        """Make a DeepLab head for the features of a ResNet of bottlenecks."""
        if task not in dense.OBJECTIVE:
            raise unknown("task", task, dense.OBJECTIVE)
        return DeepLabHead(2048, NYUv2.num_out_channels[task])

    def save_model(self, model: nn.Module, path: str, *args: Any, **kwargs: Any) -> None:
        """Save a tinted model with its decoders, or an encoder, as `load_model` reads it: a folder."""
        if isinstance(model, dense.TintedDense):
            return model.save_pretrained(path)
        tensors = {f"encoder.{name}": tensor for name, tensor in model.state_dict().items()}
        write_tensors(Path(path) / dense.MODEL_FILE, tensors, {"format": "pt"})


class NYUv2Pool(PoolFamily):
    """The experts' encoders are merged; each task's head is its expert's decoder."""

    name: ClassVar[str] = "dense"

    def models(self) -> Models:
        """Return what the pool loads: encoders, and decoders as heads."""
        return replace(super().models(), load_head=lambda task: decoder_head(self.pool, task))

    def check(self) -> None:
        """Refuse tasks that are none of NYUv2's, and experts that have no decoder for theirs.

        Raises:
            ValueError: naming the task.
        """
        super().check()
        for task in self.tasks:
            config = self.pool.get_model_config(task)
            if config.get("ckpt_path") is None or task not in (config.get("decoders") or []):
                raise ValueError(
                    f"The expert `{task}` must have a `ckpt_path`, and `{task}` among its `decoders`. "
                    f"Found {dict(config)}."
                )


def decoder_head(pool: StockModelPool, task: str) -> dense.DenseHead:
    """Return the head of a task: the decoder of its expert.

    Args:
        pool: of NYUv2's models.
        task: segmentation, depth or normal.
    """
    decoder = pool.load_model(task, encoder_only=False).decoders[task]
    size = getattr(pool, "image_size", NYUv2Model.image_size)
    return dense.DenseHead(decoder, size).requires_grad_(False).eval()
