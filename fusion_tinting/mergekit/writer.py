"""Tensors go to disk as they are merged; mergekit holds them until a shard, 5 GB by default, is full.

A merge of 8 experts of 106 M parameters holds 0.56 GiB of anonymous memory with this writer. mergekit's own
holds 0.65 GiB with `--out-shard-size 200M`, but then writes 420 MB into three files, and `mergekit-pytorch`
merges models of a single file alone; for one file it takes 0.85 GiB, more than the 0.8 that we allow.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mergekit.io import tasks
from mergekit.io.tensor_writer import TensorWriter
from torch import Tensor

HEADER = 1 << 18
"""Bytes kept free at the start of a file for what comes to be known last; filled up with spaces."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Data type -> its name in safetensors."""


class StreamingWriter(TensorWriter):
    """mergekit's writer of safetensors, which holds one tensor where that one holds a shard.

    A shard ends where mergekit's does, when its header is full, or when a tensor of a wider data type would
    not be aligned.
    """

    _file = None

    def save_tensor(self, name: str, tensor: Tensor, clone: bool = False) -> None:
        """Write a tensor at once, where mergekit's own writer collects them."""
        if self.use_async or not self.safe_serialization:
            return super().save_tensor(name, tensor, clone)
        data = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()
        with self._lock:
            if self._file is not None and self._is_full(name, tensor, data.nbytes):
                self._flush_current_shard()
            if self._file is None:
                self._begin()
            first, last = self.current_shard_size, self.current_shard_size + data.nbytes
            self._header[name] = self._entry(tensor, first, last)
            self._room -= len(json.dumps({name: self._header[name]}))
            self._file.write(data)
            self.current_shard_size = last

    def _is_full(self, name: str, tensor: Tensor, size: int) -> bool:
        last = self.current_shard_size + size
        entry = json.dumps({name: self._entry(tensor, last, last)})
        too_large = 0 < self.max_shard_size < last
        return too_large or len(entry) > self._room or self.current_shard_size % tensor.element_size() != 0

    def _entry(self, tensor: Tensor, first: int, last: int) -> dict:
        return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, last]}

    def _begin(self) -> None:
        prefix, extension = self._get_name_components()
        self._file = open(Path(self.out_path) / f"{prefix}-{self.shards_written + 1}.{extension}", "wb")  # noqa: SIM115
        self._file.write((HEADER - 8).to_bytes(8, "little").ljust(HEADER))
        self._header, self._room = {"__metadata__": {"format": "pt"}}, HEADER - 100

    def _flush_current_shard(self) -> None:
        if self._file is None:
            return super()._flush_current_shard()
        self._file.seek(8)
        self._file.write(json.dumps(self._header).encode())
        self._file.close()
        shard = Path(self._file.name).name
        self.weight_map |= {name: shard for name in self._header if name != "__metadata__"}
        self.total_size += self.current_shard_size
        self.shards_written += 1
        self.current_shard_size, self._file = 0, None


@contextmanager
def streamed() -> Iterator[None]:
    """While it lasts mergekit writes with `StreamingWriter`; it has no setting for that."""
    theirs, tasks.TensorWriter = tasks.TensorWriter, StreamingWriter
    try:
        yield
    finally:
        tasks.TensorWriter = theirs
