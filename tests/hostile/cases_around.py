"""Somebody else is there; names, folders, disks and processes."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import fusion_tinting as ft
from fusion_tinting.run import checkpoint

from .cases import Case
from .small import look, make, plain_data, tint, vectors

ROOT = Path(__file__).parents[2]
FOLDER = ("run", "folder", "file", "write")


@cache
def plain(layer: str = "head") -> dict[str, Any]:
    """Return the result without a folder."""
    return look(tint(make(), plain_data(), layer=layer))


def in_folder(act: Callable[[Path], Any]) -> Callable[[], Any]:
    """Return what is done in a new folder, which is the working directory meanwhile."""

    def run() -> Any:
        before = os.getcwd()
        with TemporaryDirectory() as name:
            os.chdir(name)
            try:
                return act(Path(name))
            finally:
                os.chdir(before)

    return run


def into(
    path: Callable[[Path], Any], prepare: Callable[[Path], Any] = lambda folder: None
) -> Callable[[], Any]:
    """Return what runs into a path, twice; the second time it must be found."""

    def act(folder: Path) -> Any:
        prepare(folder)
        first = look(tint(make(), plain_data(), run_dir=path(folder)))
        steps: list[int] = []
        second = look(
            tint(make(), plain_data(), run_dir=path(folder), on_step=lambda step, _: steps.append(step))
        )
        assert not steps, "not found again"
        assert all(torch.equal(first[key], second[key]) for key in first), "found another"
        return first

    return in_folder(act)


def named(names: tuple[str, str]) -> Callable[[], Any]:
    """Return what runs and loads with tasks of these names."""

    def act(folder: Path) -> Any:
        models = make()
        for part in ("experts", "heads"):
            models[part] = dict(zip(names, models[part].values(), strict=True))
        data = dict(zip(names, plain_data().values(), strict=True))
        with started(folder) as told:
            model = tint(models, data, run_dir=folder / "run", on_step=told)
        found = look(ft.TintedModel.load(folder / "run", **models))
        again = look(tint(models, data, run_dir=folder / "run"))
        assert all(torch.equal(found[key], again[key]) for key in found), "loaded another"
        outside = {path.name for path in folder.iterdir()} - {"run"}
        assert not outside, f"written outside: {outside}"
        return {"λ": look(model)["λ"], "logits": list(found.values())[1]}

    return in_folder(act)


@contextmanager
def started(folder: Path) -> Iterator[Callable[[int, Any], None]]:
    """Say of an error whether it came after the work."""
    steps: list[int] = []
    try:
        yield lambda step, _: steps.append(step)
    except Exception as error:
        if steps:
            raise AssertionError(f"after {len(steps)} iterations: {error}") from error
        raise


NAMES = {
    "Chinese": ("动物园里的大熊猫和小熊猫都在吃竹子而且非常高兴地玩耍吧好", "狗"),
    "sixty Chinese characters": ("熊" * 60, "狗"),
    "slashes": ("a/b", "a\\b"),
    "two folders up": ("../../up", "dogs"),
    "absolute": ("/tmp/cats-of-hostile", "dogs"),
    "dots": (".", ".."),
    "empty": ("", "dogs"),
    "a space": (" ", "dogs"),
    "a space behind": ("cats ", "cats"),
    "line breaks": ("cats\nand", "dogs"),
    "carriage returns": ("cats\r", "dogs"),
    "a tab": ("cats\t", "dogs"),
    "a zero byte": ("cats\0", "dogs"),
    "commas": ("cats,dogs", "dogs,cats"),
    "quotes": ('"cats"', "'dogs'"),
    "percent": ("cats%20", "cats "),
    "percent and slash": ("a%2Fb", "a/b"),
    "case alone": ("cats", "CATS"),
    "two forms of one letter": ("caf\u00e9", "cafe\u0301"),
    "three hundred letters": ("c" * 300, "d"),
    "two of two hundred that begin alike": ("c" * 250 + "1", "c" * 250 + "2"),
    "an emoji": ("🐈", "🐕"),
    "half a surrogate": ("cats\ud800", "dogs"),
    "dots of a module": ("cats.v1", "dogs.v1"),
    "the name of the pre-trained model": ("_pretrained_", "dogs"),
    "a star": ("*", "?"),
    "right to left": ("\u202ecats", "dogs"),
    "a dash": ("-rf", "--help"),
    "of Windows": ("CON", "a:b"),
    "tilde": ("~", "~root"),
    "braces": ("{cats}", "$(dogs)"),
    "the name of a file": ("tinting.json", "coefficients.safetensors"),
    "a number": ("1", "2"),
    "None": ("None", "null"),
}


def result_of_names(names: tuple[str, str]) -> Callable[[], Any]:
    def act() -> Any:
        models = make()
        for part in ("experts", "heads"):
            models[part] = dict(zip(names, models[part].values(), strict=True))
        found = look(tint(models, dict(zip(names, plain_data().values(), strict=True))))
        return {"λ": found["λ"], "logits": list(found.values())[1]}

    return act


# Folders.


def read_only_file(folder: Path) -> None:
    (folder / "run").write_text("mine")


def with_foreign_manifest(content: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "run").mkdir()
        (folder / "run" / "tinting.json").write_text(content, encoding="utf-8")

    return prepare


def raising(layer: str = "head") -> Callable[[], Any]:
    """`on_step` raises; the run goes on afterward."""

    def act(folder: Path) -> Any:
        def fail(step: int, _: Any) -> None:
            if step == 1:
                raise KeyError("the user's")

        with suppress(KeyError):
            tint(make(), plain_data(), run_dir=folder / "run", on_step=fail, layer=layer)
        return look(tint(make(), plain_data(), run_dir=folder / "run", layer=layer))

    return in_folder(act)


def raises_late() -> Any:
    """`on_step` raises after many iterations."""

    def act(folder: Path) -> Any:
        def fail(step: int, _: Any) -> None:
            if step == 30:
                raise KeyError("the user's")

        with suppress(KeyError):
            tint(make(), plain_data(), run_dir=folder / "run", on_step=fail, steps=40)
        return look(tint(make(), plain_data(), run_dir=folder / "run", steps=40))

    return in_folder(act)()


def reentrant() -> Any:
    """`on_step` starts a run of its own."""

    def inner(step: int, _: Any) -> None:
        if step == 1:
            tint(make(), plain_data(), seed=5)

    return look(tint(make(), plain_data(), on_step=inner))


def asking(step_of: int = 1) -> Any:
    """`on_step` uses the global generator and changes settings of torch."""

    def inner(step: int, _: Any) -> None:
        torch.manual_seed(9)
        torch.rand(3)

    return look(tint(make(), plain_data(), on_step=inner, sampler=_draws))


def _draws(output: Any, expert: Any) -> Any:
    return torch.rand(len(output)) < 0.5


def generator_kept() -> Any:
    torch.manual_seed(11)
    first = torch.rand(3)
    torch.manual_seed(11)
    models, data = make(), plain_data()
    torch.manual_seed(11)
    tint(models, data, layer="auto")
    return torch.equal(torch.rand(3), first)


def settings_kept() -> Any:
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    tint(make(), plain_data())
    return before == (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())


def saved_then(act: Callable[[Path, ft.TintedModel], Any], layer: str = "head") -> Callable[[], Any]:
    def run(folder: Path) -> Any:
        return act(folder, tint(make(), plain_data(), run_dir=folder / "run", layer=layer))

    return in_folder(run)


def load(folder: Path, **changes: Any) -> ft.TintedModel:
    return ft.TintedModel.load(folder, **{**make(), **changes})


def moved(folder: Path, _: Any) -> Any:
    shutil.move(folder / "run", folder / "elsewhere")
    return look(load(folder / "elsewhere"))


def linked(folder: Path, _: Any) -> Any:
    (folder / "link").symlink_to(folder / "run")
    return look(load(folder / "link"))


def manifest(folder: Path, change: Callable[[dict], Any]) -> None:
    path = folder / "run" / "tinting.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def files_outside(name: str) -> Callable[[Path, Any], Any]:
    def act(folder: Path, _: Any) -> Any:
        (folder / "secret").write_text("x")
        manifest(folder, lambda content: content["files"].update({name: "0" * 64}))
        return look(load(folder / "run"))

    return act


def link_to_other_tint(folder: Path, _: Any) -> Any:
    tint_path = folder / "run" / "tints" / "cats.safetensors"
    tint_path.unlink()
    tint_path.symlink_to(folder / "run" / "tints" / "dogs.safetensors")
    return look(load(folder / "run"))


def edit_coefficients(folder: Path, _: Any) -> Any:
    path = folder / "run" / "coefficients.safetensors"
    save_file(
        {name: row + 0.1 for name, row in load_file(path).items()}, path, {"tasks": '["cats", "dogs"]'}
    )
    return look(load(folder / "run"))


def swapped_columns(folder: Path, _: Any) -> Any:
    """Metadata of λ name the tasks in another order."""
    path = folder / "run" / "coefficients.safetensors"
    save_file(load_file(path), path, {"tasks": '["dogs", "cats"]'})
    return look(load(folder / "run"))


def reordered_tasks(folder: Path, model: Any) -> Any:
    models = make()
    for part in ("experts", "heads"):
        models[part] = dict(reversed(models[part].items()))
    return look(ft.TintedModel.load(folder / "run", **models))


def through_pickle(_: Path, model: Any) -> Any:
    return look(pickle.loads(pickle.dumps(model)))


def through_torch_save(folder: Path, model: Any) -> Any:
    torch.save(model, folder / "model.pt")
    return look(torch.load(folder / "model.pt", weights_only=False))


def through_deepcopy(_: Path, model: Any) -> Any:
    return look(copy.deepcopy(model))


def through_state_dict(folder: Path, model: Any) -> Any:
    other = load(folder / "run")
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    return look(other)


def after_asking_in_training_mode(_: Path, model: Any) -> Any:
    model.train()
    with torch.no_grad():
        model(vectors(3), "cats")
    return look(model.eval())


def saved_elsewhere(folder: Path, model: Any) -> Any:
    model.save(folder / "other")
    return look(load(folder / "other"))


def saved_over_itself(folder: Path, model: Any) -> Any:
    model.save(folder / "run")
    model.save(folder / "run")
    return look(load(folder / "run"))


def loaded_and_saved(folder: Path, _: Any) -> Any:
    load(folder / "run").save(folder / "again")
    return look(load(folder / "again"))


def saved_over_another(folder: Path, model: Any) -> Any:
    """The tints of a run with more tasks must not stay behind as if they were of this one."""
    tint(
        make(tasks=("cats", "dogs", "owls")), plain_data(("cats", "dogs", "owls")), run_dir=folder / "three"
    )
    model.save(folder / "three")
    found = sorted(path.name for path in (folder / "three" / "tints").iterdir())
    assert found == ["cats.safetensors", "dogs.safetensors"], f"left behind: {found}"
    return look(load(folder / "three"))


def changed_after(folder: Path, model: Any) -> Any:
    """The heads of the caller are changed after the run."""
    models = make()
    found = tint(models, plain_data(), run_dir=folder / "two")
    for module in (*models["heads"].values(), *models["experts"].values(), models["pretrained"]):
        for parameter in module.parameters():
            parameter.data.zero_()
    return look(found)


def tasks_in_threads(folder: Path, model: Any) -> Any:
    """`set_task` in one thread is not another's."""
    alone = {task: model(vectors(7), task) for task in model.tasks}
    wrong: list[str] = []
    barrier = threading.Barrier(2)

    def ask(task: str) -> None:
        for _ in range(50):
            barrier.wait()
            model.set_task(task)
            barrier.wait()
            if not torch.equal(model(vectors(7)), alone[task]):
                wrong.append(task)

    threads = [threading.Thread(target=ask, args=(task,)) for task in model.tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


# Processes of their own.

CHILD = """
import sys
sys.path[:0] = {path!r}
import torch
from hostile.small import make, plain_data, tint
model = tint(make(), {{t: d for t, d in plain_data().items()}}, run_dir={run!r}, info=__import__("fusion_tinting").RunInfo(split="pr\\u00fcfung"))
print(repr(torch.stack([r for _, r in sorted(model.coefficients.items())]).sum().item()))
"""


def child(environment: dict[str, str], before: str = "", cwd: str = ".") -> Callable[[], Any]:
    """Return what runs in a process with another environment, and gives the sum of λ."""

    def act(folder: Path) -> Any:
        (folder / "cwd").mkdir()
        code = before + CHILD.format(path=[str(ROOT / "tests"), str(ROOT)], run=str(folder / "run"))
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            **{k: v.format(folder=folder) for k, v in environment.items()},
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=env,
            cwd=folder / cwd,
            timeout=120,
        )
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1])
        return {"λ": torch.tensor(float(done.stdout.split()[-1])), "loads": look(load(folder / "run"))["λ"]}

    return in_folder(act)


def child_right() -> Any:
    rows = plain()["λ"]
    return {"λ": torch.tensor(rows.sum().item()), "loads": rows}


def mode_of(umask: int) -> Callable[[], Any]:
    def act(folder: Path) -> Any:
        before = os.umask(umask)
        try:
            tint(make(), plain_data(), run_dir=folder / "run")
        finally:
            os.umask(before)
        modes = {path.stat().st_mode & 0o777 for path in (folder / "run").rglob("*") if path.is_file()}
        return sorted(map(oct, modes))

    return in_folder(act)


def cache_is(prepare: Callable[[Path], str]) -> Callable[[], Any]:
    """Return what runs with another cache folder."""

    def act(folder: Path) -> Any:
        before = os.environ["FUSION_TINTING_CACHE"]
        os.environ["FUSION_TINTING_CACHE"] = prepare(folder)
        try:
            tint(make(), plain_data())
            return look(tint(make(), plain_data()))
        finally:
            os.environ["FUSION_TINTING_CACHE"] = before

    return in_folder(act)


def cache_file(folder: Path) -> str:
    (folder / "file").write_text("mine")
    return str(folder / "file")


def cache_with_file_for_folder(folder: Path) -> str:
    (folder / "cache").mkdir()
    (folder / "cache" / "predictions").write_text("mine")
    return str(folder / "cache")


def from_run(prepare: Callable[[Path], str], **options: Any) -> Callable[[], Any]:
    """Return what starts λ from an earlier run."""

    def act(folder: Path) -> Any:
        tint(make(), plain_data(), run_dir=folder / "run", seed=3)
        return look(tint(make(), plain_data(), init=prepare(folder), **options))

    return in_folder(act)


def from_rows() -> Any:
    rows = tint(make(), plain_data(), seed=3).coefficients
    return look(tint(make(), plain_data(), init=rows))


def swap_metadata(folder: Path) -> str:
    path = folder / "run" / "coefficients.safetensors"
    save_file(load_file(path), folder / "run" / "other.safetensors", {"tasks": '["cats", "birds"]'})
    return str(folder / "run" / "other.safetensors")


def no_metadata(folder: Path) -> str:
    path = folder / "run" / "coefficients.safetensors"
    (folder / "bare").mkdir()
    save_file(load_file(path), folder / "bare" / "coefficients.safetensors")
    return str(folder / "bare")


def checkpoint_of(change: Callable[[Path], Any]) -> Callable[[], Any]:
    """Return what continues a run of which something was changed."""

    def act(folder: Path) -> Any:
        before, checkpoint.EVERY = checkpoint.EVERY, 1

        def stop(step: int, _: Any) -> None:
            if step == 2:
                raise InterruptedError

        try:
            tint(make(), plain_data(), run_dir=folder / "run", on_step=stop)
        except InterruptedError:
            pass
        finally:
            checkpoint.EVERY = before
        change(folder / "run")
        return look(tint(make(), plain_data(), run_dir=folder / "run"))

    return in_folder(act)


def half_written(run: Path) -> None:
    (run / "checkpoint" / ".state.abc123.safetensors").write_bytes(b"half")
    (run / ".tinting.abc123.json").write_bytes(b"{")


def without_manifest(folder: Path, _: Any) -> Any:
    """A kill between the files of the artifact: what is there without a manifest counts for nothing."""
    (folder / "run" / "tinting.json").unlink()
    (folder / "run" / "coefficients.safetensors").write_bytes(b"half")
    return look(tint(make(), plain_data(), run_dir=folder / "run"))


def without_checkpoint(folder: Path, _: Any) -> Any:
    shutil.rmtree(folder / "run" / "checkpoint")
    return look(tint(make(), plain_data(), run_dir=folder / "run"))


def missing_part(name: str) -> Callable[[Path, Any], Any]:
    def act(folder: Path, _: Any) -> Any:
        (folder / "run" / name).unlink()
        return look(tint(make(), plain_data(), run_dir=folder / "run"))

    return act


CASES = [
    *(Case(f"names: {what}", named(names), result_of_names(names), ("task", "name")) for what, names in NAMES.items()),
    Case("folders: a text", into(lambda f: str(f / "run")), plain),
    Case("folders: relative", into(lambda f: "run/deep/er"), plain),
    Case("folders: this one", into(lambda f: "."), plain, FOLDER),
    Case("folders: empty", into(lambda f: ""), plain, ("run_dir", *FOLDER)),
    Case("folders: of the user", in_folder(lambda f: _at_home(f)), plain, FOLDER),
    Case("folders: with spaces and letters", into(lambda f: f / "prüfung 1 – λ"), plain),
    Case("folders: a link to a folder", into(lambda f: f / "link", lambda f: ((f / "real").mkdir(), (f / "link").symlink_to(f / "real"))), plain),
    Case("folders: a link to nowhere", into(lambda f: f / "link", lambda f: (f / "link").symlink_to(f / "nowhere")), plain, ("link", *FOLDER)),
    Case("folders: a file", into(lambda f: f / "run", read_only_file), None, FOLDER),
    Case("folders: inside a file", into(lambda f: f / "run" / "x", read_only_file), None, FOLDER),
    Case("folders: a number", into(lambda f: 3), None, ("run_dir",)),
    Case("folders: bytes", into(lambda f: b"run"), None, ("run_dir",)),
    Case("folders: a name of three hundred letters", into(lambda f: f / ("r" * 300)), None, FOLDER),
    Case("folders: a file where the checkpoints go", into(lambda f: f / "run", lambda f: ((f / "run").mkdir(), (f / "run" / "checkpoint").write_text("x"))), None, ("checkpoint", *FOLDER)),
    Case("folders: a file where the tints go", into(lambda f: f / "run", lambda f: ((f / "run").mkdir(), (f / "run" / "tints").write_text("x"))), None, ("tints", *FOLDER)),
    Case("folders: a folder where λ goes", into(lambda f: f / "run", lambda f: (f / "run" / "coefficients.safetensors").mkdir(parents=True)), None, ("coefficients", *FOLDER)),
    Case("folders: a folder where the manifest goes", into(lambda f: f / "run", lambda f: (f / "run" / "tinting.json").mkdir(parents=True)), None, ("tinting.json", *FOLDER)),
    *(Case(f"folders: a manifest that is {what}", into(lambda f: f / "run", with_foreign_manifest(text)), None, ("tinting.json",)) for what, text in (
        ("empty", ""), ("an object", "{}"), ("a list", "[]"), ("of numbers that are none", '{"tasks": NaN}'), ("deep", "[" * 5000 + "]" * 5000),
        ("of a huge number", '{"format_version": 1' + "0" * 5000 + "}"), ("marked", "\ufeff{}"), ("of another tool", '{"version": "1.0.0", "repository": {}}'),
        ("of two keys alike", '{"tasks": [], "tasks": {}}'), ("of a newer format in text", '{"format_version": "2"}'))),
    Case("folders: moved", saved_then(moved), plain),
    Case("folders: through a link", saved_then(linked), plain),
    Case("folders: a manifest with a mark", saved_then(lambda f, _: ((p := f / "run" / "tinting.json").write_text("\ufeff" + p.read_text("utf-8"), "utf-8"), look(load(f / "run")))[1]), plain, ("tinting.json",)),
    Case("folders: a manifest in another order", saved_then(lambda f, _: (manifest(f, lambda c: c.update(tasks=c.pop("tasks"))), look(load(f / "run")))[1]), plain, ("tinting.json",)),
    Case("folders: tasks in another order in the manifest", saved_then(lambda f, _: (manifest(f, lambda c: c["tasks"].reverse()), look(load(f / "run")))[1]), None, ("tinting.json", "tasks")),
    Case("folders: another layer in the manifest", saved_then(lambda f, _: (manifest(f, lambda c: c.update(layer="stem")), look(load(f / "run")))[1]), None, ("tinting.json", "layer", "tint")),
    Case("folders: no layer in the manifest", saved_then(lambda f, _: (manifest(f, lambda c: c.update(layer=None)), look(load(f / "run")))[1]), None, ("tinting.json", "layer", "tint")),
    Case("folders: another setting in the manifest", saved_then(lambda f, _: (manifest(f, lambda c: c["settings"].update(objective="l1")), load(f / "run").info.settings["objective"])[1]), lambda: "hard", ("tinting.json",)),
    Case("folders: another split in the manifest", saved_then(lambda f, _: (manifest(f, lambda c: c.update(split="test")), load(f / "run").info.split)[1]), lambda: None, ("tinting.json",)),
    *(Case(f"folders: a manifest that names {name}", saved_then(files_outside(name)), None, (name, "tinting.json", "folder")) for name in (
        "../secret", "/etc/hostname", "tints/../../secret", "~/.bashrc", "C:\\secret", "tints/cats.safetensors/../../../secret")),
    Case("folders: a tint that is a link to another's", saved_then(link_to_other_tint), None, ("cats.safetensors",)),
    Case("folders: λ edited by hand", saved_then(edit_coefficients), None, ("coefficients.safetensors",)),
    Case("folders: columns of λ in another order", saved_then(swapped_columns), None, ("coefficients.safetensors",)),
    Case("folders: loaded with tasks in another order", saved_then(reordered_tasks), plain),
    Case("folders: saved twice", saved_then(saved_over_itself), plain),
    Case("folders: saved elsewhere", saved_then(saved_elsewhere), plain),
    Case("folders: loaded and saved", saved_then(loaded_and_saved), plain),
    Case("folders: saved over a run of three tasks", saved_then(saved_over_another), plain, ("another run", "three", "holds")),
    Case("folders: temporary files of a dead run", checkpoint_of(half_written), plain),
    Case("folders: a checkpoint that is a folder", checkpoint_of(lambda r: ((p := r / "checkpoint" / "state.safetensors").unlink(), p.mkdir())), plain, ("state.safetensors",)),
    Case("folders: an empty checkpoint", checkpoint_of(lambda r: (r / "checkpoint" / "state.safetensors").write_bytes(b"")), plain, ("state.safetensors",)),
    Case("folders: a checkpoint of pickles", checkpoint_of(lambda r: torch.save({"x": torch.ones(1)}, r / "checkpoint" / "state.safetensors")), None, ("state.safetensors",)),
    Case("folders: a half-written artifact", saved_then(without_manifest), plain),
    Case("folders: an artifact without its checkpoint", saved_then(without_checkpoint), plain),
    Case("folders: an artifact without λ", saved_then(missing_part("coefficients.safetensors")), plain, ("coefficients",)),
    Case("folders: an artifact without a tint", saved_then(missing_part("tints/dogs.safetensors")), plain, ("dogs",)),
    Case("folders: an artifact without curves", saved_then(missing_part("curves.csv")), plain, ("curves",)),
    Case("models: kept by pickle", saved_then(through_pickle, "block:1"), lambda: plain("block:1")),
    Case("models: kept by torch.save", saved_then(through_torch_save, "block:1"), lambda: plain("block:1")),
    Case("models: copied", saved_then(through_deepcopy, "block:1"), lambda: plain("block:1")),
    Case("models: by state_dict", saved_then(through_state_dict, "block:1"), lambda: plain("block:1")),
    Case("models: asked in training mode", saved_then(after_asking_in_training_mode), plain),
    Case("models: changed after the run", saved_then(changed_after), plain),
    Case("models: set_task from two threads", saved_then(tasks_in_threads, "block:1"), lambda: 0, ("set_task",)),
    Case("models: an unknown task", saved_then(lambda f, m: m(vectors(1), "birds")), None, ("birds",)),
    Case("models: no task", saved_then(lambda f, m: m(vectors(1))), None, ("task",)),
    Case("models: a task by place", saved_then(lambda f, m: m(vectors(1), 0)), None, ("task",)),
    Case("models: load where nothing is", in_folder(lambda f: load(f / "run")), None, ("run",)),
    Case("models: load with a head too few", saved_then(lambda f, m: load(f / "run", heads={"cats": make()["heads"]["cats"]})), None, ("dogs",)),
    Case("models: load with exchanged heads", saved_then(lambda f, m: load(f / "run", heads=dict(zip(("dogs", "cats"), make()["heads"].values(), strict=True)))), None, ("head", "cats")),
    Case("models: load with exchanged experts", saved_then(lambda f, m: load(f / "run", experts=dict(zip(("dogs", "cats"), make()["experts"].values(), strict=True)))), None, ("expert", "cats")),
    Case("models: load with base and expert exchanged", saved_then(lambda f, m: load(f / "run", pretrained=make()["experts"]["cats"])), None, ("pre-trained", "expert")),
    Case("callbacks: one raises", raising(), plain),
    Case("callbacks: one raises, a tinted block", raising("block:1"), lambda: plain("block:1")),
    Case("callbacks: one raises late", raises_late, lambda: look(tint(make(), plain_data(), steps=40))),
    Case("callbacks: one starts a run", reentrant, plain),
    Case("callbacks: one draws numbers", asking, lambda: look(tint(make(), plain_data(), sampler=_draws))),
    Case("callbacks: no function", lambda: look(tint(make(), plain_data(), on_step=3)), None, ("on_step",)),
    Case("settings: the caller's generator is as it was", generator_kept, lambda: True),
    Case("settings: torch's are as they were", settings_kept, lambda: True),
    Case("processes: the C locale", child({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}), child_right),
    Case("processes: another locale's encoding", child({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}), child_right),
    Case("processes: optimized", child({"PYTHONOPTIMIZE": "2"}), child_right),
    Case("processes: another hash seed", child({"PYTHONHASHSEED": "7"}), child_right),
    Case("processes: warnings are errors", child({"PYTHONWARNINGS": "error::UserWarning:fusion_tinting"}), child_right),
    Case("processes: no home", child({"HOME": "/nonexistent", "XDG_CACHE_HOME": "", "FUSION_TINTING_CACHE": ""}), child_right),
    Case("processes: a cache that is off", child({"FUSION_TINTING_CACHE": "off"}), child_right),
    Case("processes: two threads", child({"OMP_NUM_THREADS": "2"}), child_right),
    Case("umask 077", mode_of(0o077), lambda: ["0o600"]),
    Case("umask 002", mode_of(0o002), lambda: ["0o664"]),
    Case("cache: a file", cache_is(cache_file), plain),
    Case("cache: a file where a folder goes", cache_is(cache_with_file_for_folder), plain),
    Case("cache: inside a file", cache_is(lambda f: cache_file(f) + "/x"), plain),
    Case("cache: relative", cache_is(lambda f: "cache"), plain),
    Case("cache: of /proc", cache_is(lambda f: "/proc/hostile"), plain),
    Case("cache: a link to nowhere", cache_is(lambda f: ((f / "l").symlink_to(f / "no"), str(f / "l"))[1]), plain),
    Case("start: from a run", from_run(lambda f: str(f / "run")), from_rows),
    Case("start: from its file", from_run(lambda f: str(f / "run" / "coefficients.safetensors")), from_rows),
    Case("start: from a Path", from_run(lambda f: f / "run"), from_rows, ("init",)),
    Case("start: from nowhere", from_run(lambda f: str(f / "nowhere")), None, ("nowhere",)),
    Case("start: from a tint", from_run(lambda f: str(f / "run" / "tints" / "cats.safetensors")), None, ("cats.safetensors",)),
    Case("start: from a manifest", from_run(lambda f: str(f / "run" / "tinting.json")), None, ("tinting.json",)),
    Case("start: from other tasks", from_run(swap_metadata), None, ("dogs", "birds")),
    Case("start: from λ that names no tasks", from_run(no_metadata), None, ("coefficients.safetensors",)),
    Case("start: from a run, by block", from_run(lambda f: str(f / "run"), granularity="block"), None, ("granularity", "init")),
]  # fmt: skip


def _at_home(folder: Path) -> Any:
    before = os.environ.get("HOME", "/")
    os.environ["HOME"] = str(folder)
    try:
        found = look(tint(make(), plain_data(), run_dir="~/run"))
        assert (folder / "run" / "tinting.json").is_file(), (
            f"not at home, but {[p.name for p in folder.iterdir()]}"
        )
        return found
    finally:
        os.environ["HOME"] = before
