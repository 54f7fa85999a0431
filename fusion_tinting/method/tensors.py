"""θ₀ and the experts as they are, each tensor in its own precision: in memory, or read from files.

    τ_k,l = θ_k,l − θ₀_l      taken in float32, piece by piece, whenever a merge or a gradient needs it

A model of bfloat16 then takes two bytes a parameter here and loses nothing; from files it takes none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

PIECES = {"cpu": 1 << 18}
"""Elements converted at a time: on a CPU K times this stays near the processor."""
ELSEWHERE = 1 << 24
"""The same on a GPU, where each piece costs a launch."""


class Tensors:
    """θ₀ and K experts, tensor by tensor.

    Args:
        base: tensor name -> θ₀_l, on access.
        experts: of every expert tensor name -> θ_k,l, on access.
        device: where merged tensors are wanted; pieces are moved there.
        shared: whether these are but this process's rows; see `shards.own_rows`.

    Attributes:
        base: θ₀.
        experts: the K experts.
        shared: as given.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Sequence[Mapping[str, Tensor]],
        device: torch.device | str = "cpu",
        shared: bool = False,
    ):
        self.base, self.experts, self.device = base, experts, torch.device(device)
        self.shared = shared
        self._spare: list[Tensor] = []

    def add(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Set the k-th expert, the next one.

        Args:
            k: its place.
            tensors: tensor name -> θ_k,l, which nobody changes.
        """
        assert k == len(self.experts)
        self.experts = [*self.experts, tensors]

    def to(self, device: torch.device | str) -> "Tensors":
        """Return the same tensors on another device.

        Args:
            device: where to.
        """
        base, *experts = (
            {name: tensor.to(device) for name, tensor in tensors.items()}
            for tensors in (self.base, *self.experts)
        )
        return type(self)(base, experts, device, self.shared)

    def pieces(self, name: str) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (a, b, θ₀ from a to b, the K task vectors from a to b, shape (K, b - a)), in float32.

        The task vectors are in a buffer that the next piece overwrites.

        Args:
            name: of the tensor, in which a and b are counted.
        """
        base, experts = self.base[name].reshape(-1), [expert[name].reshape(-1) for expert in self.experts]
        size = min(len(base), PIECES.get(self.device.type, ELSEWHERE))
        buffer = self._buffer(len(experts) * size)
        for a in range(0, len(base), max(1, size)):
            b = min(a + size, len(base))
            start = base[a:b].to(self.device, non_blocking=True).float()
            deltas = buffer[: len(experts) * (b - a)].view(len(experts), b - a)
            for expert, row in zip(experts, deltas, strict=True):
                row.copy_(expert[a:b], non_blocking=True)
            yield a, b, start, deltas.sub_(start)
        self._spare = [buffer]

    def _buffer(self, numbers: int) -> Tensor:
        """Return memory for so many numbers: that of the tensor before, where it is free and large enough.

        glibc would take new memory for many of such buffers, as the holes that they leave are nibbled at.
        """
        with suppress(IndexError):
            spare = self._spare.pop()
            if len(spare) >= numbers:
                return spare
        return torch.empty(numbers, device=self.device, dtype=torch.float32)

    def release(self) -> None:
        """Release what is kept for the pieces; on a CPU that is little, and wanted again soon."""
        if self.device.type != "cpu":
            self._spare.clear()

    def __deepcopy__(self, _: object) -> "Tensors":
        return self  # never changed, and large


class Converted(Mapping[str, Tensor]):
    """Tensors in files, each in the precision that the model loaded from them has.

    Args:
        stored: tensor name -> tensor in a file.
        dtypes: tensor name -> its precision in the model.
    """

    def __init__(self, stored: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]):
        self._stored, self._dtypes = stored, dtypes

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].to(self._dtypes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._dtypes)

    def __len__(self) -> int:
        return len(self._dtypes)


class HostTensors(Tensors):
    """Tensors in files, or in the host's memory beside a GPU.

    They move to the device piece by piece, when a merge or a gradient needs them.
    """

    def add(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Set the k-th expert; what is in memory goes to the host's, pinned where a GPU copies from it."""
        super().add(k, _on_host(tensors))

    def to(self, device: torch.device | str) -> "Tensors":
        """Return the same tensors, whose pieces are wanted on another device."""
        return type(self)(_on_host(self.base), self.experts, device, self.shared)


def _on_host(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not isinstance(tensors, dict):
        return tensors  # in files
    pins = torch.cuda.is_available()
    return {name: tensor.cpu().pin_memory() if pins else tensor.cpu() for name, tensor in tensors.items()}
