"""What a run leaves behind: loading, resuming, and every way the folder can be wrong."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from world import make_world

import fusion_tinting as ft
from fusion_tinting.reporting import plots
from fusion_tinting.run import checkpoint, files

LAYERS = ["head", "block:1", None]


def same(one, two):
    x = torch.randn(7, 5)
    assert one.tasks == two.tasks
    for task in one.tasks:
        assert torch.equal(one(x, task=task), two(x, task=task))
    for name, row in one.coefficients.items():
        assert torch.equal(row, two.coefficients[name])


@pytest.mark.quick
@pytest.mark.parametrize("layer", LAYERS)
def test_saving_and_loading_changes_nothing(world, tmp_path, layer):
    tinted = world.tint(layer=layer)
    tinted.save(tmp_path)
    same(tinted, ft.TintedModel.load(tmp_path, **world.models()))


def test_loading_takes_the_artifacts_own_task_order(world, tmp_path):
    tinted = world.tint()
    tinted.save(tmp_path)
    for name in ("experts", "heads"):
        setattr(world, name, dict(reversed(getattr(world, name).items())))
    same(tinted, ft.TintedModel.load(tmp_path, **world.models()))


@pytest.mark.quick
def test_the_folder_reads_without_our_code(world, tmp_path):
    world.tint(layer="block:1", run_dir=tmp_path, seed=3)
    manifest = json.loads((tmp_path / "tinting.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["tasks"] == ["cats", "dogs", "owls"]
    assert manifest["tinted_tensors"] == ["blocks.1.weight", "blocks.1.bias"]
    assert manifest["settings"]["seed"] == 3
    assert manifest["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(manifest["experts"]["dogs"]["sha256"]) == 64
    coefficients = load_file(tmp_path / "coefficients.safetensors")
    assert coefficients.keys() == dict(world.pretrained.named_parameters()).keys()
    assert all(row.shape == (3,) and row.dtype == torch.float32 for row in coefficients.values())
    tint = load_file(tmp_path / "tints" / "dogs.safetensors")
    assert tint.keys() == {"blocks.1.weight", "blocks.1.bias"}
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "step,task,loss,agreement,kept,coefficient"
    assert len(lines) == 1 + 4 * 3


@pytest.mark.quick
@pytest.mark.parametrize(
    ("layer", "update", "average"),
    [
        ("head", "sequential", False),
        ("head", "joint", True),
        ("block:1", "sequential", True),
        ("block:1", "joint", False),
        (None, "sequential", True),
        (None, "joint", False),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(world, tmp_path, monkeypatch, layer, update, average):
    options = {"layer": layer, "update": update, "steps": 9, "average": average}
    every, killed = (8, 8) if average else (4, 5)  # the first while the mean is being taken
    whole = world.tint(**options)
    monkeypatch.setattr(checkpoint, "EVERY", every)

    iteration = ft.Adaptation.iteration

    def die(adaptation, step, lessons):
        if step == killed:
            raise RuntimeError("killed")
        iteration(adaptation, step, lessons)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(ft.Adaptation, "iteration", die)
        world.tint(**options, run_dir=tmp_path)
    steps = []
    resumed = world.tint(**options, run_dir=tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == list(range(every, 9))
    same(whole, resumed)
    assert torch.equal(whole.history.values, resumed.history.values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a world as it comes."""
    folder = tmp_path_factory.mktemp("finished")
    return make_world().tint(run_dir=folder), folder


@pytest.fixture
def run_dir(finished, tmp_path):
    """That run, in a folder of the test's own."""
    return shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)


@pytest.mark.quick
def test_a_finished_run_is_loaded_and_not_repeated(finished, world, run_dir):
    first, tmp_path = finished[0], run_dir
    steps = []
    again = world.tint(run_dir=tmp_path, on_step=lambda *_: steps.append(1))
    assert steps == []
    same(first, again)


LONG = 5000


def run_long(world, folder, errors, running):
    """Tint in a process of its own, whose errors go to a file; say when it is under way."""
    sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115
    world.tint(steps=LONG, run_dir=folder, on_step=lambda step, _: running.set() if step == 3 else None)


def test_ctrl_c_leaves_a_checkpoint_that_continues(world, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 1000)
    context, log = multiprocessing.get_context("fork"), tmp_path_factory.mktemp("log") / "errors"
    running = context.Event()
    child = context.Process(target=run_long, args=(world, tmp_path, log, running))
    child.start()
    assert running.wait(60)
    os.kill(child.pid, signal.SIGINT)
    child.join(60)
    assert child.exitcode
    errors = log.read_text()
    assert "KeyboardInterrupt: Stopped after iteration" in errors
    state = load_file(tmp_path / "checkpoint" / "state.safetensors")
    assert state["history"].shape == (LONG, 3, 4)
    done = int((state["history"][:, 0, 3] != 0).sum())
    assert done >= 4
    assert f"iteration {done};" in errors


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "settings.lr is 0.01 there and 0.5 here"),
        ({"steps": 7}, "settings.steps is 4 there and 7 here"),
        ({"info": ft.RunInfo(split="val")}, "settings.split is None there and 'val' here"),
    ],
)
def test_a_folder_of_another_run_is_refused(world, run_dir, change, message):
    with pytest.raises(ValueError, match=message):
        world.tint(run_dir=run_dir, **change)
    (run_dir / "tinting.json").unlink()  # only the checkpoint is left
    with pytest.raises(ValueError, match=message):
        world.tint(run_dir=run_dir, **change)


def test_an_artifact_of_other_experts_is_refused(world, run_dir):
    other = make_world(seed=1)
    world.experts["dogs"] = other.experts["dogs"]
    with pytest.raises(ValueError, match=r"learned from another expert `dogs`: its tensors have sha256"):
        ft.TintedModel.load(run_dir, **world.models())
    world.pretrained = other.pretrained
    with pytest.raises(ValueError, match="learned from another pre-trained model"):
        ft.TintedModel.load(run_dir, **world.models())


def test_other_heads_and_other_data_are_another_run(world, tmp_path):
    world.tint(run_dir=tmp_path, layer="block:0")
    other = make_world(seed=1)
    for name, message in (("heads", "heads.cats is"), ("unlabeled", "data.cats is")):
        mine = getattr(world, name)
        setattr(world, name, getattr(other, name))
        with pytest.raises(ValueError, match=message):
            world.tint(run_dir=tmp_path, layer="block:0")
        setattr(world, name, mine)
    world.heads["dogs"] = other.heads["dogs"]
    with pytest.raises(ValueError, match="another head of `dogs`"):
        ft.TintedModel.load(tmp_path, **world.models())


def test_two_functions_of_one_name_are_two_samplers(world, tmp_path):
    def sampler(limit):
        return lambda output, expert: output[:, 0] < limit

    world.tint(run_dir=tmp_path, sampler=sampler(5.0))
    with pytest.raises(ValueError, match=r"settings.sampler is .*<lambda>"):
        world.tint(run_dir=tmp_path, sampler=sampler(0.0))


def test_a_checkpoint_of_another_run_is_refused_before_the_experts_are_asked(world, run_dir, monkeypatch):
    (run_dir / "tinting.json").unlink()
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    with pytest.raises(ValueError, match=r"settings.steps is 4 there and 5 here"):
        world.tint(run_dir=run_dir, steps=5)


@pytest.mark.parametrize("kept", [7, 8, 0.99, None])
def test_curves_cut_short_are_noticed(world, run_dir, kept):
    path = run_dir / "curves.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    whole = b"".join(lines)
    path.write_bytes(
        {None: b"\xff\xfe", 0.99: whole[: int(0.99 * len(whole))]}.get(kept) or b"".join(lines[:kept])
    )
    with pytest.raises(ValueError, match=r"curves.csv` is cut short or damaged: expected 4 iterations"):
        ft.TintedModel.load(run_dir, **world.models())


@pytest.mark.quick
def test_plots_are_there(world, tmp_path):
    plots.write_pictures(world.tint(run_dir=tmp_path), tmp_path)
    for name in ("curves.png", "coefficients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_other_tasks_are_refused(world, run_dir):
    del world.experts["owls"], world.heads["owls"]
    with pytest.raises(ValueError, match=r"none for \['owls'\]"):
        ft.TintedModel.load(run_dir, **world.models())


class TestDamage:
    @pytest.fixture(autouse=True)
    def run(self, world, run_dir):
        self.world, self.run_dir = world, run_dir

    def refused(self, message, error=ValueError):
        with pytest.raises(error, match=message):
            ft.TintedModel.load(self.run_dir, **self.world.models())

    def edit(self, **changes):
        path = self.run_dir / "tinting.json"
        content = json.loads(path.read_text()) | changes
        del content["crc32"]
        path.write_text(json.dumps(content))

    def test_a_newer_format(self):
        self.edit(format_version=99)
        self.refused("format version 99.*reads up to 1. Upgrade")

    def test_no_artifact(self):
        (self.run_dir / "tinting.json").unlink()
        self.refused("holds no finished run", FileNotFoundError)

    def test_a_manifest_cut_short(self):
        path = self.run_dir / "tinting.json"
        path.write_text(path.read_text()[:80])
        self.refused("tinting.json` is cut short or no JSON")

    def test_some_other_json(self):
        path = self.run_dir / "tinting.json"
        whole = json.loads(path.read_text())
        del whole["crc32"]
        for other in ([], None, "run", 3):
            path.write_text(json.dumps(other))
            self.refused("tinting.json` must hold a JSON object")
        path.write_text("{}")
        self.refused("no manifest of fusion_tinting: it lacks")
        for key in ("tasks", "layer", "base", "experts", "heads", "settings", "samples", "data"):
            path.write_text(json.dumps({**whole, key: 1}))
            self.refused(f"it lacks .*'{key}'")
        path.write_text(json.dumps({**whole, "base": {"id": None}}))
        self.refused("it lacks .*sha256 of base")
        path.write_text(json.dumps({**whole, "tasks": ["cats", "bees"]}))
        self.refused("it lacks .*expert bees")

    @pytest.mark.parametrize("name", ["coefficients.safetensors", "tints/dogs.safetensors"])
    def test_one_bit(self, name):
        path = self.run_dir / name
        flipped = bytearray(path.read_bytes())
        flipped[-3] ^= 1  # of the last number's fraction: it stays finite
        path.write_bytes(flipped)
        self.refused(f"{name}` is damaged: its content is not what was written")

    @pytest.mark.parametrize("name", ["coefficients.safetensors", "tints/dogs.safetensors"])
    def test_a_file_of_another_run(self, name):
        other = self.run_dir / "other"
        self.world.tint(run_dir=other, seed=1)
        (other / name).replace(self.run_dir / name)
        self.refused(f"{name}` has changed since the run was finished")

    @pytest.mark.parametrize("key", ["seconds", "split", "settings", "experts", "tinted_tensors"])
    def test_one_entry_of_the_manifest(self, key):
        path = self.run_dir / "tinting.json"
        content = json.loads(path.read_text())
        content[key] = {**content[key], "dogs": content["experts"]["cats"]} if key == "experts" else {}
        path.write_text(json.dumps(content))
        self.refused("tinting.json` has changed since it was written")

    def test_models_that_moved_may_be_named_anew(self):
        path = self.run_dir / "tinting.json"
        content = json.loads(path.read_text())
        content["experts"]["dogs"]["id"] = content["base"]["id"] = "elsewhere"
        path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")  # as some editors save it
        model = ft.TintedModel.load(self.run_dir, **self.world.models())
        assert model.info.ids["dogs"] == "elsewhere"

    @pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "tints/../../outside", ""])
    def test_a_manifest_that_names_files_elsewhere(self, name):
        self.edit(files={name: "0" * 64})
        self.refused(f"names the file `{name}`, which is not in its folder")

    def test_a_changed_figure_of_the_curves(self):
        path = self.run_dir / "curves.csv"
        path.write_text(path.read_text().replace("0.3,", "0.4,").replace("1,", "2,"))
        self.refused("curves.csv` (has changed|is cut short)")
        path.unlink()
        assert ft.TintedModel.load(self.run_dir, **self.world.models()).history is None

    def test_an_older_manifest_without_hashes_of_files(self):
        path = self.run_dir / "tinting.json"
        found = json.loads(path.read_text())
        tints = (f"tints/{task}.safetensors" for task in self.world.experts)
        assert sorted(found.pop("files")) == sorted(["coefficients.safetensors", "curves.csv", *tints])
        path.write_text(json.dumps(found))
        ft.TintedModel.load(self.run_dir, **self.world.models())

    @pytest.mark.parametrize("name", ["coefficients.safetensors", "tints/dogs.safetensors"])
    def test_a_tensor_file_cut_short_or_missing(self, name):
        path = self.run_dir / name
        path.write_bytes(path.read_bytes()[:-3])
        self.refused(f"{name}` is cut short or no safetensors file")
        path.unlink()
        self.refused(f"{name}` is missing", FileNotFoundError)

    def test_missing_and_unknown_coefficients(self):
        path = self.run_dir / "coefficients.safetensors"
        tensors = load_file(path)
        tensors["nonsense"] = tensors.pop("stem.bias")
        save_file(tensors, path)
        self.refused(r"missing \['stem.bias'\], not theirs \['nonsense'\]")

    def test_coefficients_that_are_not_finite_or_too_few(self):
        path = self.run_dir / "coefficients.safetensors"
        tensors = load_file(path)
        for bad in (torch.full((3,), float("nan")), torch.ones(2)):
            save_file({**tensors, "stem.bias": bad}, path)
            self.refused("`stem.bias` in .* must hold 3 finite numbers")

    def test_a_tint_of_another_shape(self):
        path = self.run_dir / "tints" / "dogs.safetensors"
        save_file({**load_file(path), "head.bias": torch.ones(9)}, path)
        self.refused(r"`head.bias`.*has shape \(9,\).*has \(4,\)")

    def test_a_checkpoint_cut_short(self):
        (self.run_dir / "tinting.json").unlink()
        path = self.run_dir / "checkpoint" / "state.safetensors"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(ValueError, match=r"state.safetensors` is cut short"):
            self.world.tint(run_dir=self.run_dir)

    @pytest.mark.parametrize("metadata", [None, {"run": "{"}, {"run": "[]"}, {"run": '{"tasks": []}'}])
    def test_a_checkpoint_that_is_nobodys(self, metadata):
        (self.run_dir / "tinting.json").unlink()
        path = self.run_dir / "checkpoint" / "state.safetensors"
        save_file(load_file(path), path, metadata)
        with pytest.raises(ValueError, match=r"state.safetensors` is damaged.*Delete it to start anew"):
            self.world.tint(run_dir=self.run_dir)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = tmp_path / "a" / "tensors.safetensors"
    files.write_tensors(target, {"x": torch.ones(1)}, {})
    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match=r"Could not write .*No space left.*Free space"):
        files.write_tensors(target, {"x": torch.zeros(1)}, {})
    assert os.listdir(target.parent) == ["tensors.safetensors"]
    assert load_file(target)["x"].item() == 1


def test_files_hold_tensors_whatever_their_memory_and_checkpoints_are_no_copies(tmp_path, monkeypatch):
    whole = torch.arange(12.0).view(3, 4)
    given = {"whole": whole, "rows": whole[1:], "turned": whole.T, "again": whole, "own": torch.ones(2)}
    given |= {"apart": torch.arange(8.0)[4:], "none": torch.empty(0), "scalar": torch.tensor(3)}
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: copied.append(tensor) or clone(tensor))
    files.write_tensors(tmp_path / "tensors.safetensors", given, {})
    assert len(copied) == 2  # `rows` and `again`, which lie in the memory of `whole`
    read, _ = files.read_tensors(tmp_path / "tensors.safetensors", checked=True)
    assert read.keys() == given.keys()
    assert all(torch.equal(tensor, given[name]) for name, tensor in read.items())


def test_a_folder_that_cannot_be_written_is_found_before_the_work(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    with pytest.raises(NotADirectoryError, match=r"file` is a file; expected a folder"):
        world.tint(run_dir=tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"file` is a file; expected a folder"):
        world.tint(run_dir=tmp_path / "file" / "run")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(NotADirectoryError, match=r"link` is a link to `nowhere`, which is not there"):
        world.tint(run_dir=tmp_path / "link")


def test_task_names_may_hold_any_character(tmp_path):
    world = make_world(["a/b", "c d", "é.f"])
    tinted = world.tint(run_dir=tmp_path)
    same(tinted, ft.TintedModel.load(tmp_path, **world.models()))


@pytest.mark.quick
def test_using_a_tinted_model(world):
    tinted, x = world.tint(), torch.randn(3, 5)
    assert tinted(x, task="owls").shape == (3, 5)
    tinted.set_task("cats")
    assert torch.equal(tinted(x), tinted(x, task="cats"))
    with pytest.raises(ValueError, match=r"Unknown task `cat`. Did you mean `cats`"):
        tinted(x, task="cat")
    assert type(tinted.merged) is type(world.pretrained)
    assert list(tinted.tints) == ["cats", "dogs", "owls"]


@pytest.mark.quick
def test_remerged_models_are_the_named_ones(world):
    tinted, x = world.tint(), torch.randn(3, 5)
    for task in tinted.tasks:
        expected = world.heads[task](world.pretrained.eval()(x))
        torch.testing.assert_close(tinted.remerged(0.0)(x, task=task), expected)
        expected = world.heads[task](world.experts[task].eval()(x))
        torch.testing.assert_close(tinted.remerged(task)(x, task=task), expected)


def _other_head(tinted):
    tinted.heads[1].bias.data += 1


def _other_coefficients(tinted):
    tinted.coefficients["norm.bias"] += 0.1


def _other_weights(tinted):
    tinted.merged.stem.weight.data += 1e-3


def _state_of_another(tinted):
    tinted.load_state_dict(make_world().tint(layer="block:1", seed=5, steps=2).state_dict())


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_other_head, "the head of `dogs`"),
        (_other_coefficients, "`norm.bias`"),
        (_other_weights, "`stem.weight`"),
        (_state_of_another, "of the shared encoder"),
        (lambda tinted: tinted.half(), "the head of `cats`"),
        (lambda tinted: tinted.coefficients.clear(), "no λ to save"),
    ],
)
def test_a_model_that_its_artifact_would_not_make_again_is_not_saved(world, tmp_path, change, named):
    tinted = world.tint(layer="block:1")
    change(tinted)
    with pytest.raises(ValueError, match=named):
        tinted.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
def test_another_merge_is_not_saved_and_a_model_that_nothing_has_trained_is(world, tmp_path):
    model = world.tint().remerged(0.3)
    with pytest.raises(ValueError, match="of no run"):
        model.save(tmp_path)
    with pytest.raises(ValueError, match="of no run"):
        ft.write_pictures(model, tmp_path)
    untrained = ft.TintedModel.untrained(**world.models(), layer="block:1")
    untrained.save(tmp_path)
    same(untrained, ft.TintedModel.load(tmp_path, **world.models()))


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_loaded_model_and_a_copy_are_saved_again(world, tmp_path, dtype):
    tinted = world.tint(run_dir=tmp_path / "1", layer="block:1", task_vectors={"dtype": dtype})
    ft.TintedModel.load(tmp_path / "1", **world.models()).save(tmp_path / "2")
    deepcopy(tinted).save(tmp_path / "3")
    same(tinted, ft.TintedModel.load(tmp_path / "2", **world.models()))
    same(tinted, ft.TintedModel.load(tmp_path / "3", **world.models()))
