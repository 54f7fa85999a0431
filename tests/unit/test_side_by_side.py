"""Somebody else is there: other processes and threads with the same folder, signals, names of tasks."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from world import make_world

import fusion_tinting as ft
from fusion_tinting.run import checkpoint
from fusion_tinting.run.lock import held, require_free

pytestmark = pytest.mark.quick

DEAD = 4194305  # one more than Linux gives


def hold(folder, told):
    with held(folder):
        told.set()
        time.sleep(60)


@pytest.fixture
def neighbor(tmp_path):
    """A process that works in the folder."""
    context = multiprocessing.get_context("fork")
    told = context.Event()
    process = context.Process(target=hold, args=(tmp_path, told))
    process.start()
    assert told.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_told_who_is_there(neighbor, world, tmp_path):
    said = f"in use by another run: process {neighbor.pid} on {socket.gethostname()}, since 20"
    with pytest.raises(BlockingIOError, match=said):
        world.tint(run_dir=tmp_path)
    with pytest.raises(BlockingIOError, match=said):
        require_free(tmp_path)
    with pytest.raises(BlockingIOError, match=said):
        world.tint().save(tmp_path)


def test_the_lock_of_a_killed_process_is_nobodys(neighbor, world, tmp_path):
    neighbor.kill()
    neighbor.join()
    for place in (tmp_path, tmp_path / "checkpoint", tmp_path / "tints"):
        place.mkdir(exist_ok=True)
        (place / f".writing-{neighbor.pid}-0.safetensors").touch()
    world.tint(run_dir=tmp_path)
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_a_second_thread_is_told_too(tmp_path):
    with held(tmp_path), held(tmp_path):  # the first may ask again
        other = ThreadPoolExecutor(1).submit(require_free, tmp_path)
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            other.result()
    assert os.listdir(tmp_path) == []
    require_free(tmp_path)
    require_free(tmp_path / "not there")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({"pid": DEAD, "host": socket.gethostname(), "since": "1"}, True),
        ({"pid": os.getppid(), "host": socket.gethostname(), "since": "1"}, False),
        ({"pid": DEAD, "host": "another machine", "since": "1"}, False),
        ([], False),
    ],
)
def test_on_a_file_system_without_locks_what_is_written_counts(tmp_path, monkeypatch, holder, free):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    (tmp_path / ".lock").write_text(json.dumps(holder))
    if free:
        require_free(tmp_path)
    else:
        with pytest.raises(BlockingIOError, match=r"If you know that it has ended, delete `.*lock`"):
            require_free(tmp_path)


class Second(ft.Processes):
    """The second of two processes, whose first cannot write."""

    rank, count = 1, 2

    def sum(self, tensor):
        return tensor + 1


def test_all_processes_of_a_run_learn_that_the_folder_is_not_theirs(tmp_path):
    with pytest.raises(OSError, match="first process of this run cannot work in"), held(tmp_path, Second()):
        pass


@pytest.mark.long
def test_two_runs_in_two_threads_are_what_they_are_alone(tmp_path):
    barrier, worlds = Barrier(2), [make_world(seed=seed) for seed in (0, 1)]

    def run(seed, place=None):
        if place is not None:
            barrier.wait()
        return worlds[seed].tint(
            sampler=lambda output, expert: torch.rand(len(output)) < 0.5,  # draws
            run_dir=place,
            seed=seed,
            on_step=lambda *_: time.sleep(0.01),
        )

    alone = [run(seed) for seed in (0, 1)]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, (0, 1), (tmp_path / "0", tmp_path / "1")))
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one.history.values, two.history.values)
        assert all(torch.equal(one.coefficients[name], two.coefficients[name]) for name in one.coefficients)
    assert torch.get_num_threads() == threads


def test_an_error_of_on_step_leaves_a_checkpoint_and_everything_as_it_was(world, tmp_path):
    whole, handlers = world.tint(), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def fail(step, history):
        if step == 2:
            raise LookupError("from on_step")

    generator = torch.get_rng_state()
    with pytest.raises(LookupError, match="from on_step"):
        world.tint(run_dir=tmp_path, on_step=fail)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not (tmp_path / ".lock").exists()
    steps = []
    again = world.tint(run_dir=tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == [3]
    assert torch.equal(whole.history.values, again.history.values)


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, SystemExit, 143),
        (signal.SIGHUP, SystemExit, 129),
    ],
)
def test_a_signal_leaves_a_checkpoint(world, tmp_path, capsys, number, error, status):
    whole = world.tint()

    def press(step, history):
        if step == 1:
            signal.raise_signal(number)

    with pytest.raises(error) as caught:
        world.tint(run_dir=tmp_path, on_step=press)
    assert "Stopped after iteration 2" in str(caught.value) + capsys.readouterr().err
    assert getattr(caught.value, "code", None) == status
    steps = []
    again = world.tint(run_dir=tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == [2, 3]
    assert torch.equal(whole.history.values, again.history.values)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignored", [True, False])
def test_what_the_user_has_set_for_a_signal_is_done(world, tmp_path, number, ignored):
    """Such as a note that the job ends soon: it is made once there is a checkpoint, and the run goes on."""
    notes = []

    def note(*_):
        notes.append(checkpoint.read_checkpoint(checkpoint.checkpoint_path(tmp_path))[2])

    before = signal.signal(number, signal.SIG_IGN if ignored else note)
    try:
        press = {1: lambda: signal.raise_signal(number)}
        tinted = world.tint(run_dir=tmp_path, on_step=lambda step, _: press.get(step, int)())
    finally:
        signal.signal(number, before)
    assert notes == ([] if ignored else [2])
    assert torch.equal(tinted.history.values, world.tint().history.values)


@pytest.mark.parametrize(
    "names",
    [
        ["模" * 30, "型" * 40],
        ["task " * 100 + "a", "task " * 100 + "b"],
        [".", ".."],
        ["Cats", "cats"],
        ["caf\u00e9", "cafe\u0301"],
        [" left", "right "],
        ["a/b", "../c"],
        ["a,b", '"c"'],
        ["👩‍👩‍👧", "CON"],
    ],
)
def test_names_of_tasks_that_are_right(tmp_path, names):
    world = make_world(names)
    tinted = world.tint(run_dir=tmp_path / "run", layer="block:1")
    again = ft.TintedModel.load(tmp_path / "run", **world.models())
    x = torch.randn(2, 5)
    assert again.tasks == names
    assert all(torch.equal(tinted(x, name), again(x, name)) for name in names)
    assert torch.allclose(tinted.history.values, again.history.values, atol=1e-5)
    assert len(os.listdir(tmp_path / "run" / "tints")) == len(names)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    "name", ["", "  ", "two\nlines", "a\rb", "tab\t", "nul\0", "\udcff", "a\u2028b", "\x85"]
)
def test_names_of_tasks_that_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"no line breaks or other control characters. Found"):
        make_world(["cats", name]).tint(run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_the_umask_counts(world, tmp_path, mask):
    before = os.umask(mask)
    try:
        world.tint(run_dir=tmp_path / "run")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}


def test_a_home_is_a_home(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = world.tint(run_dir="~/run")
    first.save("~/copy")
    assert (tmp_path / "run" / "tinting.json").is_file()
    for folder in ("~/run", "~/copy"):
        again = ft.TintedModel.load(folder, **world.models())
        assert torch.equal(again.coefficients["stem.bias"], first.coefficients["stem.bias"])


@pytest.mark.parametrize("folder", ["", " ", "a\0b", "r" * 256, 3, b"run"])
def test_what_is_no_folder_is_refused(world, folder):
    with pytest.raises(ValueError, match="`run_dir` must be the path of a file or folder"):
        world.tint(run_dir=folder)


@pytest.mark.parametrize("name", ["checkpoint", "tints"])
def test_a_file_in_the_place_of_a_folder_within_is_found_before_the_work(
    world, tmp_path, monkeypatch, name
):
    (tmp_path / name).write_text("")
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    with pytest.raises(NotADirectoryError, match=f"{name}` is a file; expected a folder"):
        world.tint(run_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["coefficients.safetensors", "tinting.json", "checkpoint/state.safetensors"]
)
def test_a_folder_in_the_place_of_a_file_is_found_before_the_work(world, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr("fusion_tinting.tinting.predict_experts", None)
    with pytest.raises(IsADirectoryError, match=f"{name}` is a folder; expected a file"):
        world.tint(run_dir=tmp_path)


def test_saving_over_a_run_of_other_tasks_leaves_none_of_its_tints(world, tmp_path):
    make_world(["cats", "dogs", "owls", "bees"]).tint(run_dir=tmp_path)
    world.tint().save(tmp_path)
    assert len(os.listdir(tmp_path / "tints")) == 3
    ft.TintedModel.load(tmp_path, **world.models())


def test_a_task_set_in_one_thread_is_not_anothers(world):
    model, x, barrier = world.tint(layer="block:1"), torch.randn(2, 5), Barrier(2)
    model.set_task("owls")

    def ask(task):
        first = torch.equal(model(x), model(x, "owls"))  # which holds where none is set
        barrier.wait()
        model.set_task(task)
        barrier.wait()
        return first, torch.equal(model(x), model(x, task))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, ("cats", "dogs"))) == [(True, True), (True, True)]
    assert torch.equal(model(x), model(x, "owls"))


def test_numbers_that_on_step_draws_are_no_matter_of_the_samplers(world):
    def sampler(output, expert):
        return torch.rand(len(output)) < 0.5

    plain = world.tint(sampler=sampler)
    for draw in (lambda *_: torch.rand(3), lambda *_: torch.manual_seed(9)):
        assert torch.equal(world.tint(sampler=sampler, on_step=draw).history.values, plain.history.values)
