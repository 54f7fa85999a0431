"""`init`: one value, one for each task, or the λ of an earlier run; beyond [0, 1] where `clamp` is off."""

import numpy as np
import pytest
import torch
from world import TASKS, make_world

import fusion_tinting as ft

pytestmark = pytest.mark.quick


def rows(model) -> torch.Tensor:
    return torch.stack(list(model.coefficients.values()))


def test_one_value_for_each_task_whatever_their_order(world):
    start = {"owls": 0.1, "cats": 0.6, "dogs": 0.3}
    tinted = world.tint(steps=0, init=start)
    assert torch.equal(
        rows(tinted), torch.tensor([start[task] for task in TASKS]).expand(rows(tinted).shape)
    )


def test_the_coefficients_of_an_earlier_run_as_a_mapping_and_as_a_folder(world, tmp_path):
    first = world.tint(run_dir=tmp_path / "first")
    for init in (
        first.coefficients,
        str(tmp_path / "first"),
        str(tmp_path / "first/coefficients.safetensors"),
    ):
        assert torch.equal(rows(world.tint(steps=0, init=init)), rows(first))


def test_an_earlier_run_may_have_more_tasks_in_another_order(tmp_path):
    first = make_world().tint(run_dir=tmp_path / "first")
    two = make_world(["owls", "cats"])
    tinted = two.tint(steps=0, init=str(tmp_path / "first"), task_vectors={"pretraining": "different"})
    assert torch.equal(rows(tinted), rows(first)[:, [TASKS.index("owls"), TASKS.index("cats")]])


def test_a_run_that_started_from_another_is_known_by_its_coefficients(world, tmp_path):
    first = world.tint(run_dir=tmp_path / "first")
    second = world.tint(init=str(tmp_path / "first"), run_dir=tmp_path / "second")
    again = world.tint(init=first.coefficients, run_dir=tmp_path / "second")  # the same start: loaded
    assert torch.equal(rows(again), rows(second))
    with pytest.raises(ValueError, match=r"another run: settings\.init"):
        world.tint(run_dir=tmp_path / "second")
    assert second.start == 0.3  # what Task Arithmetic beside it is merged with


@pytest.mark.parametrize("init", [-0.4, 1.7, {"cats": -0.2, "dogs": 1.3, "owls": 0.5}])
def test_below_zero_and_above_one_without_the_clamp(world, init):
    tinted = world.tint(steps=0, init=init, clamp=False)
    assert rows(tinted).min() == pytest.approx(min(init.values()) if isinstance(init, dict) else init)


@pytest.mark.parametrize(
    ("init", "named"),
    [
        (-0.1, "`init` must be a number from 0 to 1"),
        (1.5, "clamp=false"),
        ({"cats": 0.3, "dogs": float("nan"), "owls": 0.3}, "`init` of `dogs`"),
        ({"cats": 0.3, "dogs": 0.3}, "owls"),
        ({"cats": 0.3, "dogs": 0.3, "owls": "half"}, "`init` of `owls`"),
        ("nowhere", "nowhere"),
    ],
)
def test_a_start_that_is_none_is_named_before_any_work(world, init, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        world.tint(init=init)


def test_a_folder_without_a_task_names_it(world, tmp_path):
    make_world(["owls", "cats"]).tint(run_dir=tmp_path / "two")
    with pytest.raises(ValueError, match="no λ for the tasks \\['dogs'\\]"):
        world.tint(init=str(tmp_path / "two"))


def test_coefficients_of_another_encoder_are_refused(world):
    with pytest.raises(ValueError, match="`init` must have one value for each task"):
        world.tint(init={"foreign.weight": torch.full((3,), 0.2)})


def test_granularity_keeps_a_start_for_each_task():
    lam = ft.Coefficients(
        ["a.weight", "a.bias"], ["x", "y"], init={"y": 0.2, "x": 0.7}, granularity="task"
    )()
    torch.testing.assert_close(lam, torch.tensor([[0.7, 0.2], [0.7, 0.2]]))


def test_rows_that_differ_within_a_group_are_refused():
    rows = {"a.weight": torch.tensor([0.1, 0.2]), "a.bias": torch.tensor([0.1, 0.3])}
    assert ft.Coefficients(list(rows), ["x", "y"], init=rows)().shape == (2, 2)
    with pytest.raises(ValueError, match="granularity=task"):
        ft.Coefficients(list(rows), ["x", "y"], init=rows, granularity="task")


def test_numbers_of_numpy_and_pytorch_and_a_path_are_taken(world, tmp_path):
    as_numbers = world.tint(run_dir=tmp_path, steps=3, lr=0.5, batch_size=4, init=0.25)
    others = world.tint(
        run_dir=tmp_path,
        steps=np.int64(3),
        lr=np.float32(0.5),
        batch_size=torch.tensor(4),
        init={task: np.float16(0.25) for task in TASKS},
    )
    assert torch.equal(rows(as_numbers), rows(others))
    assert torch.equal(rows(world.tint(steps=0, init=tmp_path)), rows(as_numbers))


@pytest.mark.parametrize("start", [[0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3]), (0.3,)])
def test_values_without_the_names_of_their_tasks_are_refused(world, start):
    with pytest.raises(ValueError, match=r"`init` must be one number, `\{task: number\}`"):
        world.tint(init=start)
