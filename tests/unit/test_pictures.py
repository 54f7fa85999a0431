"""The pictures of a run."""

import os

import pytest
from PIL import Image

from fusion_tinting.reporting.plots import write_pictures

PICTURES = ("coefficients.png", "curves.png")
OLD = 1_000_000_000


@pytest.fixture
def run(world, tmp_path):
    """A finished run and its folder, with no pictures in it."""
    model = world.tint(run_dir=tmp_path)
    for name in PICTURES:
        (tmp_path / name).unlink(missing_ok=True)
    return model, tmp_path


def written(folder) -> list[str]:
    paths = sorted(folder.glob("*.png"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return [path.name for path in paths]


@pytest.mark.rendered
@pytest.mark.parametrize("times", [1, 20])
def test_a_run_gets_its_pictures(run, times):
    """Short or long, when its curves are smoothed."""
    model, folder = run
    model.history.values = model.history.values.repeat(times, 1, 1)
    write_pictures(model, str(folder))
    assert written(folder) == sorted(PICTURES)
    for name in PICTURES:
        assert len(Image.open(folder / name).convert("RGB").getcolors(10**6)) > 20


def test_a_finished_run_that_is_loaded_gets_those_that_are_missing(run, world):
    model, folder = run
    write_pictures(model, folder)
    (folder / PICTURES[1]).unlink()
    kept = (folder / PICTURES[0]).stat().st_mtime_ns
    write_pictures(world.tint(run_dir=folder), folder)
    assert written(folder) == sorted(PICTURES)
    assert (folder / PICTURES[0]).stat().st_mtime_ns == kept


def test_pictures_of_an_earlier_run_are_drawn_again(run):
    model, folder = run
    for name in PICTURES:
        (folder / name).write_text("of another run")
        os.utime(folder / name, (OLD, OLD))
    write_pictures(model, folder)
    assert written(folder) == sorted(PICTURES)


def test_a_model_without_a_history_has_no_curves(run):
    model, folder = run
    model.history = None
    write_pictures(model, folder)
    assert written(folder) == [PICTURES[0]]


def test_what_a_process_killed_while_it_drew_has_left_is_removed(run, world):
    _, folder = run
    (folder / ".writing-4194305-0.png").touch()
    write_pictures(world.tint(run_dir=folder), folder)
    assert written(folder) == sorted(PICTURES)
    assert [path.name for path in folder.glob(".*")] == []


def test_a_disk_too_full_for_a_picture_does_not_take_the_result_with_it(run, world, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    model, folder = run
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.warns(
            UserWarning, match=r"Could not write .*c.*png.*No space left.*complete without it"
        ):
            write_pictures(model, folder)
    assert written(folder) == []
    write_pictures(world.tint(run_dir=folder), folder)
    assert written(folder) == sorted(PICTURES)


def test_a_disk_too_full_for_curves_does_not_either(world, tmp_path, monkeypatch):
    from fusion_tinting.run import artifact

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "write_text", full)
    with pytest.warns(UserWarning, match="complete without it"):
        model = world.tint(run_dir=tmp_path)
    again = world.tint(run_dir=tmp_path)
    assert again.history is None
    assert all(again.coefficients[name].equal(row) for name, row in model.coefficients.items())


def test_a_model_without_a_folder_is_drawn_into_any(world, tmp_path):
    write_pictures(world.tint(), tmp_path / "new")
    assert written(tmp_path / "new") == list(PICTURES)
