"""What is written as it comes is what mergekit's own writer would have written."""

import json

import pytest
import torch
from mergekit.io import tasks
from mergekit.io.tensor_writer import TensorWriter
from safetensors import safe_open
from safetensors.torch import load_file

from fusion_tinting.mergekit import writer
from fusion_tinting.mergekit.writer import StreamingWriter, streamed

pytestmark = pytest.mark.quick


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {f"layers.{i}.weight": torch.randn(8, 4).to(dtype) for i, dtype in enumerate(writer.DTYPES)}
    return {**found, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "turned": torch.randn(3, 5).T}


def write(kind, folder, tensors, size=10**9) -> dict[str, torch.Tensor]:
    made = kind(str(folder), size)
    for name, tensor in tensors.items():
        made.save_tensor(name, tensor)
    made.finalize()
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )


@pytest.mark.parametrize("size", [300, 10**9])
def test_the_same_tensors_as_mergekits_writer(tmp_path, size):
    found = write(StreamingWriter, tmp_path / "ours", some_tensors(), size)
    assert_same(found, some_tensors())
    assert_same(write(TensorWriter, tmp_path / "theirs", some_tensors(), size), some_tensors())


def test_one_shard_is_one_file_that_says_whose_it_is(tmp_path):
    tensors = {name: t for name, t in some_tensors().items() if t.dtype == torch.float32}
    write(StreamingWriter, tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_end_where_mergekits_end(tmp_path):
    tensors = {f"layers.{i}": torch.full((16,), float(i)) for i in range(20)}
    index = {}
    for kind in (StreamingWriter, TensorWriter):
        write(kind, tmp_path / kind.__name__, tensors, 200)
        path = tmp_path / kind.__name__ / "model.safetensors.index.json"
        index[kind] = json.loads(path.read_text())
    assert index[StreamingWriter] == index[TensorWriter]
    assert len(set(index[StreamingWriter]["weight_map"].values())) == 7


def test_a_shard_ends_when_its_header_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "HEADER", 1024)
    tensors = {f"layers.{i}": torch.full((2,), float(i)) for i in range(40)}
    assert_same(write(StreamingWriter, tmp_path, tensors), tensors)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_tensors_are_on_disk_before_the_shard_is_full(tmp_path):
    made = StreamingWriter(str(tmp_path))
    for place in range(4):
        made.save_tensor(f"layers.{place}", torch.zeros(1 << 18))
    assert not made.current_shard
    assert (tmp_path / "model-1.safetensors").stat().st_size >= 3 << 20
    made.finalize()


def test_other_formats_are_mergekits_own(tmp_path):
    made = StreamingWriter(str(tmp_path), safe_serialization=False)
    made.save_tensor("weight", torch.ones(3))
    made.finalize()
    assert torch.equal(torch.load(tmp_path / "pytorch_model.bin")["weight"], torch.ones(3))
    made = StreamingWriter(str(tmp_path / "async"), use_async=True)
    made.save_tensor("weight", torch.ones(3))
    made.finalize()
    assert torch.equal(load_file(tmp_path / "async" / "model.safetensors")["weight"], torch.ones(3))


def test_mergekit_is_itself_again_afterwards():
    with pytest.raises(ZeroDivisionError), streamed():
        assert tasks.TensorWriter is StreamingWriter
        1 / 0  # noqa: B018
    assert tasks.TensorWriter is TensorWriter
