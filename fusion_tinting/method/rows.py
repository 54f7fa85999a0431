"""θ₀ and the task vectors in flat buffers: what makes the merge of small models fast."""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

PIECE = 1 << 16
"""Columns converted to float32 at a time: K times this stays in the processor's cache."""

Slots = dict[str, tuple[int, int, torch.Size]]
"""Tensor name -> (start, stop, shape) in a flat buffer."""


class Rows:
    """θ₀ and K rows of P numbers, in memory; `fusion_tinting.run.storage` has other places for the rows.

    Args:
        tensors: tensor name -> θ₀_l.
        count: K.
        dtype: of the rows: float32; or float16, which `pieces` converts to float32, with a scale for each
            tensor.

    Attributes:
        slots: tensor name -> its place in a row.
        base: θ₀, shape (P,), float32.
        whole: the rows.
        scales: (L, K), powers of two, such that τ_k,l = scales[l, k] · row k of l. All one in
            float32; in float16 each tensor's largest value is brought near the top of the range, so that
            small values keep their eleven bits: relative error of a tensor 2⁻¹¹ at most.
        shared: whether these are but this process's part; never.
    """

    shared = False

    def __init__(self, tensors: Mapping[str, Tensor], count: int, dtype: torch.dtype):
        self.slots = slots_of(tensors)
        self.base = _flatten(tensors, self.slots)
        self.whole = self._room(count, self.base.numel(), dtype)
        self.scales = self.base.new_ones(len(self.slots), count)

    @property
    def device(self) -> torch.device:
        """Where merged tensors come from."""
        return self.base.device

    def _room(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return room for the rows."""
        return torch.empty(count, width, dtype=dtype, device=self.base.device)

    def add(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Set row `k` to an expert's task vector.

        Args:
            k: its place.
            tensors: tensor name -> θ_k,l.
        """
        row = _flatten(tensors, self.slots).to(self.base.device).sub_(self.base)
        if self.whole.dtype == torch.float16:
            self.scales[:, k] = _scale_(row, self.slots)
        self.write(k, row)

    def write(self, k: int, row: Tensor) -> None:
        """Set row `k`, converted to the rows' own dtype.

        Args:
            k: its place.
            row: shape (P,).
        """
        self.whole[k] = row

    def to(self, device: torch.device | str) -> "Rows":
        """Return the same rows on another device.

        Args:
            device: where to.
        """
        moved = copy.copy(self)
        moved.base, moved.scales = self.base.to(device), self.scales.to(device)
        moved.whole = self._moved(device)
        return moved

    def _moved(self, device: torch.device | str) -> Tensor:
        return self.whole.to(device)

    def pieces(self, name: str) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (a, b, θ₀ from a to b, the rows from a to b as float32, shape (K, b - a)) of a tensor.

        Float32 rows are not copied and come in one piece; others in pieces, in a buffer that the next
        piece overwrites.

        Args:
            name: of the tensor, in which a and b are counted.
        """
        first, stop, _ = self.slots[name]
        for a, b, deltas in self.columns(first, stop):
            yield a - first, b - first, self.base[a:b], deltas

    def columns(self, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (a, b, columns a to b as float32, shape (K, b - a)), from `start` to `stop`.

        Args:
            start: the first column.
            stop: the one after the last.
        """
        if self.whole.dtype == torch.float32:
            yield start, stop, self.whole[:, start:stop]
            return
        size = min(PIECE if self.whole.device.type == "cpu" else stop - start, stop - start)
        buffer = torch.empty(len(self.whole), size, device=self.whole.device, dtype=torch.float32)
        for a in range(start, stop, max(size, 1)):
            b = min(a + size, stop)
            yield a, b, buffer[:, : b - a].copy_(self.whole[:, a:b])

    def release(self) -> None:
        """Release cached pages of a file; nothing to do in memory."""

    def __deepcopy__(self, _: object) -> "Rows":
        return self  # never changed once written, and large


def slots_of(tensors: Mapping[str, Tensor]) -> Slots:
    """Return the places of named tensors in a flat buffer, one after another.

    Args:
        tensors: tensor name -> tensor.
    """
    slots: Slots = {}
    start = 0
    for name, tensor in tensors.items():
        slots[name] = (start, start + tensor.numel(), tensor.shape)
        start += tensor.numel()
    return slots


def _flatten(tensors: Mapping[str, Tensor], slots: Slots) -> Tensor:
    """Return named tensors as one float32 row."""
    stop = max(stop for _, stop, _ in slots.values())
    out = torch.empty(stop, device=next(iter(tensors.values())).device, dtype=torch.float32)
    for name, (start, stop, _) in slots.items():
        out[start:stop].copy_(tensors[name].reshape(-1))
    return out


def _scale_(row: Tensor, slots: Slots) -> Tensor:
    """Divide each tensor of `row`, in place, by a power of two; return the L powers.

    The largest value of each comes to lie between 2¹⁴ and 2¹⁵.
    """
    largest = torch.stack(
        [row[a:b].abs().max() if b > a else row.new_zeros(()) for a, b, _ in slots.values()]
    )
    exponent = torch.frexp(largest).exponent - 15
    powers = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent.clamp(min=-126)), 1.0)
    for power, (a, b, _) in zip(powers, slots.values(), strict=True):
        row[a:b] /= power
    return powers
