"""Checkpoints in every layout: read alike, or refused in one line before any work; no pickle runs code."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusion_tinting.mergekit.checkpoints import Checkpoint, require_floating

pytestmark = pytest.mark.quick

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.ones(2),
    "b.weight": torch.ones(1).half(),
}
NAMES = list(TENSORS)


def safetensors(folder: Path, tensors=TENSORS, name="model.safetensors") -> None:
    save_file(dict(tensors), folder / name, {"format": "pt"})


def pickled(folder: Path, content=TENSORS, name="pytorch_model.bin", **options) -> None:
    torch.save(content, folder / name, **options)


def sharded(folder: Path, write=safetensors, stem="model", ending="safetensors", **changes) -> None:
    """Two files and an index; `changes` are entries of its map, None for one that it lacks."""
    files = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    write(folder, {NAMES[0]: TENSORS[NAMES[0]]}, files[0])
    write(folder, {name: TENSORS[name] for name in NAMES[1:]}, files[1])
    of = {name: files[name != NAMES[0]] for name in NAMES} | changes
    index = {"weight_map": {name: file for name, file in of.items() if file is not None}}
    (folder / f"{'model' if stem == 'model' else stem}.{ending}.index.json").write_text(json.dumps(index))


WHOLE = {
    "safetensors": safetensors,
    "safetensors in two files": sharded,
    "bin": pickled,
    "bin of old": lambda folder: pickled(folder, _use_new_zipfile_serialization=False),
    "bin with a state dict": lambda folder: pickled(folder, {"state_dict": TENSORS, "epoch": 3}),
    "bin in two files": lambda folder: sharded(folder, pickled, "pytorch_model", "bin"),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_every_layout_is_read_alike(tmp_path, layout):
    WHOLE[layout](tmp_path)
    found = Checkpoint.open(str(tmp_path))
    assert found.shapes() == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensor(name), tensor) and found.tensor(name).dtype == tensor.dtype


def test_of_two_formats_safetensors_are_read_and_that_is_said(tmp_path, capsys):
    pickled(tmp_path, {name: torch.zeros(3) for name in NAMES})
    safetensors(tmp_path)
    assert torch.equal(Checkpoint.open(str(tmp_path)).tensor("a.bias"), torch.ones(2))
    said = capsys.readouterr().err
    assert "`model.safetensors` and `pytorch_model.bin`: the first is read" in said


class Evil:
    """What a pickle can do."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def _both_kinds_of_one_format(folder):
    sharded(folder)
    safetensors(folder)


def _file_gone(folder):
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _in_two_files(folder):
    sharded(folder)
    safetensors(folder, TENSORS, "model-00002-of-00002.safetensors")


def _index(folder, text):
    safetensors(folder, name="model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


def _cut(folder):
    pickled(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])


def _adapter(folder):
    safetensors(folder)
    (folder / "adapter_config.json").write_text("{}")


REFUSED = {
    "nothing": (lambda folder: None, "has no checkpoint"),
    "another format": (lambda folder: (folder / "tf_model.h5").touch(), "tf_model.h5"),
    "an adapter": (_adapter, "holds an adapter"),
    "two models": (_both_kinds_of_one_format, "holds two models"),
    "a file of the index is gone": (_file_gone, "model-00002-of-00002.safetensors` is missing"),
    "a tensor in two files": (_in_two_files, "hold tensors that it does not name there"),
    "a tensor that the index lacks": (
        lambda folder: sharded(folder, **{NAMES[1]: None}),
        "hold tensors that it does not name there",
    ),
    "a tensor that no file holds": (
        lambda folder: sharded(folder, lost="model-00001-of-00002.safetensors"),
        "names tensors that its files do not hold: [('lost'",
    ),
    "a way out of the folder": (
        lambda folder: sharded(folder, lost="../model.safetensors"),
        "that of a file beside it",
    ),
    "an index without a map": (lambda folder: _index(folder, "{}"), "is no index of a checkpoint"),
    "an index that is cut short": (lambda folder: _index(folder, '{"weight_map": {'), "cut short"),
    "an index of numbers": (lambda folder: _index(folder, '{"weight_map": {"a": 1}}'), "is no index"),
    "code": (lambda folder: pickled(folder, {"a": Evil()}), "was not loaded, for a pickle can run code"),
    "code, of old": (
        lambda folder: pickled(folder, {"a": Evil()}, _use_new_zipfile_serialization=False),
        "was not loaded, for a pickle can run code",
    ),
    "a module": (lambda folder: pickled(folder, torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "a bin that is cut short": (_cut, "pytorch_model.bin` is damaged or"),
    "a list": (lambda folder: pickled(folder, [torch.ones(2)]), "holds no tensors by name, but a list"),
    "numbers among tensors": (lambda folder: pickled(folder, {**TENSORS, "lr": 0.1}), "`lr`: a float"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_model_is_refused_in_one_line(tmp_path, monkeypatch, case):
    make, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    make(tmp_path / "model")
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        Checkpoint.open(str(tmp_path / "model"))
    assert message in str(refusal.value) and str(tmp_path / "model") in str(refusal.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(tmp_path, dtype):
    safetensors(tmp_path, {"a.weight": torch.ones(2, 2).to(dtype), "position_ids": torch.arange(3)})
    with pytest.raises(ValueError, match=r"is quantized \(its `a\.weight`"):
        require_floating(Checkpoint.open(str(tmp_path)))


def test_a_configuration_that_says_quantized_is_refused_and_integer_buffers_are_not(tmp_path):
    safetensors(tmp_path, {**TENSORS, "position_ids": torch.arange(3), "count": torch.tensor(3)})
    require_floating(Checkpoint.open(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(ValueError, match="is quantized"):
        require_floating(Checkpoint.open(str(tmp_path)))
