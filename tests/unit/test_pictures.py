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
def test_a_run_gets_its_pictures(run):
    model, folder = run
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
