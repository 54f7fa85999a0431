"""Lightning Fabric as the core's `Processes`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

from lightning import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn

from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.processes import Processes

HALF = "bf16-true"
PRECISIONS = ("32-true", "bf16-mixed", HALF)


class OneModel(ModelParallelStrategy):
    """Devices that share one model: `fabric=fsdp2`. What is set up by Fabric itself stays whole."""

    def __init__(self) -> None:
        super().__init__(parallelize_fn=lambda module, _: module)


class FabricProcesses(Processes):
    """The ranks, device and precision of a Fabric.

    Raises:
        ValueError: a precision in which gradients would have no range, such as float16.
    """

    def __init__(self, fabric: Fabric):
        super().__init__(fabric.device)
        self.fabric, self.rank, self.count = fabric, fabric.global_rank, fabric.world_size
        self.shards = self.count > 1 and isinstance(fabric.strategy, ModelParallelStrategy)
        precision = fabric._precision.precision
        if precision not in PRECISIONS:
            raise ValueError(
                f"`fabric.precision={precision}` is not supported. Expected one of: "
                f"{', '.join(PRECISIONS)}. λ and the tints are trained in float32 in any of them."
            )
        self._half = precision == HALF
        self._converted: dict[int, nn.Parameter] = {}

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return self.fabric.all_reduce(tensor, reduce_op="sum") if self.count > 1 else tensor

    def autocast(self) -> AbstractContextManager:
        """Return the context of Fabric's precision; with `bf16-true` models are of it themselves."""
        return nullcontext() if self._half else self.fabric.autocast()

    def fit(self, models: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """Return models in Fabric's precision: copies where that is `bf16-true`, made on access.

        What experts share with the pre-trained model, such as CLIP's projection, their copies share too.

        Args:
            models: by name.
        """
        if not self._half:
            return models
        for parameter in models[PRETRAINED].parameters() if PRETRAINED in models else ():
            if parameter.is_floating_point():
                half = parameter.detach().bfloat16()
                self._converted[id(parameter)] = nn.Parameter(half, parameter.requires_grad)
        return InHalf(models, self._converted)


class InHalf(Mapping[str, nn.Module]):
    """Copies of models in bfloat16, made on access.

    Args:
        models: by name.
        converted: id of a parameter of the pre-trained model, which outlives this -> its copy.
    """

    def __init__(self, models: Mapping[str, nn.Module], converted: Mapping[int, nn.Parameter]):
        self._models, self._converted = models, converted

    @property
    def stored(self) -> Callable[[str], Mapping[str, Tensor]] | None:
        """What gives their tensors in files; see `LoadedExperts`."""
        return getattr(self._models, "stored", None)

    def __getitem__(self, name: str) -> nn.Module:
        return deepcopy(self._models[name], dict(self._converted)).bfloat16()

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)
