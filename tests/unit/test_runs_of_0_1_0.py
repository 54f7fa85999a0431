"""Runs that release 0.1.0 wrote, in `tests/data/0.1.0`, still load, and a stopped one goes on."""

import shutil
from pathlib import Path

import pytest
import torch
from old_world import TASKS, make
from safetensors.torch import load_file

import fusion_tinting as ft

pytestmark = pytest.mark.quick

RUNS = Path(__file__).parents[1] / "data" / "0.1.0"


def rows(model) -> torch.Tensor:
    return torch.stack(list(model.coefficients.values()))


@pytest.mark.parametrize(("run", "layer"), [("finished", "head"), ("block", "blocks.1")])
def test_a_finished_run_is_loaded(run, layer):
    models, _, _ = make()
    model = ft.TintedModel.load(RUNS / run, **models)
    stored = load_file(RUNS / run / "coefficients.safetensors")
    assert all(torch.equal(model.coefficients[name], row) for name, row in stored.items())
    assert (model.layer, model.tasks, model.info.split, len(model.history)) == (layer, TASKS, "val", 9)
    for task in TASKS:
        tint = load_file(RUNS / run / "tints" / f"{task}.safetensors")
        own = model.tints[task].state_dict()
        assert all(
            torch.equal(own[name.removeprefix(f"{layer}.")], tensor) for name, tensor in tint.items()
        )


def tint(run_dir=None, **changes):
    models, unlabeled, settings = make()
    heads, experts = models["heads"], models["experts"]
    options = {**settings, **changes}
    return ft.tint(
        models["pretrained"], experts=experts, heads=heads, unlabeled=unlabeled, run_dir=run_dir, **options
    )


def test_a_finished_run_is_known_as_the_same(tmp_path):
    shutil.copytree(RUNS / "finished", tmp_path / "run")
    before = (tmp_path / "run" / "tinting.json").read_bytes()
    model = tint(tmp_path / "run", info=ft.RunInfo(split="val"))
    assert (tmp_path / "run" / "tinting.json").read_bytes() == before  # loaded, not written anew
    torch.testing.assert_close(rows(model), rows(tint()), rtol=0, atol=1e-6)  # what is learned today


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    shutil.copytree(RUNS / "stopped", tmp_path / "run")
    visited = []
    model = tint(tmp_path / "run", on_step=lambda step, history: visited.append(step))
    assert visited == [6, 7, 8]
    torch.testing.assert_close(rows(model), rows(tint()), rtol=0, atol=1e-6)
