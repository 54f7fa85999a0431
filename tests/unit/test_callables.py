"""Objectives and samplers of the user's own: what they read, and by which name a run with them is known."""

import pickle
from functools import partial

import pytest
import torch
from world import make_world

import fusion_tinting as ft

pytestmark = pytest.mark.quick


def figures(model) -> torch.Tensor:
    return model.history.values


@pytest.mark.parametrize("name", sorted(ft.OBJECTIVES))
def test_an_objective_is_the_same_by_name_and_as_an_object(name):
    by_name = make_world().tint(objective=name, sampler="all")
    as_object = make_world().tint(objective=ft.OBJECTIVES[name], sampler="all")
    assert torch.equal(figures(by_name), figures(as_object))  # agreement, too
    assert by_name.info.settings == as_object.info.settings


def test_agreement_of_values_is_no_agreement_of_arg_maxes(world):
    tinted = world.tint(objective=ft.objectives.l1, sampler="all", steps=1)
    agreed = tinted.history.agreement
    assert ((agreed > 0) & (agreed < 1)).all()
    assert not torch.isin(agreed * 8, torch.arange(9.0)).all()  # arg-maxes of a batch of 8 agree in eighths


def test_an_objective_of_ones_own_can_say_that_it_reads_values(world):
    def loss(output, expert):
        return (output - expert).abs().flatten(1).mean(1)

    own = world.tint(objective=ft.Objective("mine", loss, ft.Reads.VALUES), sampler="all")
    assert torch.equal(figures(own), figures(make_world().tint(objective="l1", sampler="all")))


def test_labels_agree_side_by_side_of_one_half():
    output, expert = torch.tensor([[2.0, -1.0, 3.0, -4.0]]), torch.tensor([[0.1, 5.0, 1.0, -2.0]])
    assert ft.agreement(output, expert, ft.Reads.LABELS).item() == 0.75


def above(limit: float):
    return lambda logits, expert: logits[:, 0] > limit


def distance(output, expert):
    return (output - expert).abs().flatten(1).mean(1)


class Callable:
    def __call__(self, logits, expert):
        return logits[:, 0] > 0


def kept_run(run_dir):
    """The world's run in a folder, and whether it was trained now."""
    steps = []

    def run(**settings):
        steps.clear()
        make_world().tint(run_dir=run_dir, on_step=lambda *_: steps.append(1), **settings)
        return bool(steps)

    return run


@pytest.mark.parametrize(
    "own",
    [above(0.0), partial(lambda limit, logits, expert: logits[:, 0] > limit, 0.0), Callable()],
    ids=["a lambda", "a partial", "an object"],
)
def test_a_callable_with_a_name_is_known_by_it(own, tmp_path):
    run = kept_run(tmp_path)
    assert run(sampler=ft.Named("above 0", own))
    assert not run(sampler=ft.Named("above 0", above(0.0)))  # another object, as in another process
    with pytest.raises(ValueError, match=r"settings\.sampler is 'above 0' there and 'above 1' here"):
        run(sampler=ft.Named("above 1", above(1.0)))


def test_a_function_can_have_its_own_name(tmp_path):
    run, one, same, other = kept_run(tmp_path), above(0.0), partial(above(0.0)), above(1.0)
    one.name, same.name, other.name = "above 0", "above 0", "above 1"
    assert run(sampler=one)
    assert not run(sampler=same)
    with pytest.raises(ValueError, match=r"settings\.sampler is 'above 0' there and 'above 1' here"):
        run(sampler=other)
    for wrong, message in ((3, "must be a string"), ("all", "is built in")):
        other.name = wrong
        with pytest.raises(ValueError, match=message):
            ft.Settings(sampler=other)


@pytest.mark.parametrize("named", [ft.Named("distance", distance), ft.Objective("distance", distance)])
def test_an_objective_with_a_name_is_known_by_it(named, tmp_path):
    run = kept_run(tmp_path)
    assert run(objective=dict.fromkeys(make_world().experts, named), sampler="all")
    assert not run(objective=ft.Objective("distance", distance), sampler="all")
    other = ft.Objective("distance", distance, ft.Reads.VALUES)
    with pytest.raises(ValueError, match=r"settings\.objective is .* and 'distance, reads values' here"):
        run(objective=other, sampler="all")


@pytest.mark.parametrize("finished", [True, False], ids=["a finished run", "a checkpoint"])
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": above(0.0)},
        {"sampler": Callable()},
        {"objective": distance, "sampler": "all"},
        {"objective": dict.fromkeys(("cats", "dogs"), "l1") | {"owls": distance}, "sampler": "all"},
    ],
    ids=["a sampler", "an object", "an objective", "an objective of one task"],
)
def test_a_run_whose_callable_has_no_name_is_never_taken_for_another(settings, finished, tmp_path):
    run = kept_run(tmp_path)
    run(**settings)
    if not finished:
        (tmp_path / "tinting.json").unlink()
    for wanted in (settings, {}):
        with pytest.raises(
            ValueError, match=r"without a name.*`fusion_tinting\.Named\('|another run: settings"
        ):
            run(**wanted)
    ft.TintedModel.load(tmp_path, **make_world().models()) if finished else None  # the model needs neither


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": ft.Objective("hard", distance)},
        {"objective": {task: ft.Objective("l1", distance) for task in ("cats", "dogs", "owls")}},
        {"objective": ft.Named("soft", distance)},
        {"sampler": ft.Named("all", above(0.0))},
        {"sampler": ft.Named("top_confidence:0.3", above(0.0))},
    ],
)
def test_a_name_that_is_built_in_is_refused(settings):
    with pytest.raises(ValueError, match="is the name of one that is built in"):
        ft.Settings(**settings)


@pytest.mark.parametrize("name", ["", " ", None, 3, "mine, without a name"])
def test_what_is_no_name_is_refused(name):
    for make in (ft.Named, ft.Objective):
        with pytest.raises(ValueError, match="name of a callable must be a string"):
            make(name, distance)


def test_what_is_built_in_has_its_name_however_it_is_given():
    given = {"sampler": ft.SAMPLERS["confidence_difference"], "objective": ft.objectives.soft}
    settings = ft.Settings(**given).to_json()
    assert (settings["sampler"], settings["objective"]) == ("confidence_difference", "soft")
    ft.Settings(objective=pickle.loads(pickle.dumps(ft.objectives.soft)))  # the same, come from elsewhere
