"""Lightning Fabric as the core's `Processes`."""

from contextlib import AbstractContextManager

from lightning import Fabric
from torch import Tensor

from fusion_tinting.run.processes import Processes

PRECISIONS = ("32-true", "bf16-mixed")


class FabricProcesses(Processes):
    """The ranks, device and precision of a Fabric.

    Raises:
        ValueError: a precision in which λ and the tints would not be trained in float32.
    """

    def __init__(self, fabric: Fabric):
        super().__init__(fabric.device)
        self.fabric, self.rank, self.count = fabric, fabric.global_rank, fabric.world_size
        precision = fabric._precision.precision
        if precision not in PRECISIONS:
            raise ValueError(
                f"`fabric.precision={precision}` is not supported: λ and the tints are trained in "
                f"float32. Expected one of: {', '.join(PRECISIONS)}."
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return self.fabric.all_reduce(tensor, reduce_op="sum") if self.count > 1 else tensor

    def autocast(self) -> AbstractContextManager:
        """Return the context of Fabric's precision."""
        return self.fabric.autocast()
