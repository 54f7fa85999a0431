"""Objectives and samplers of the user's own: what they read, and that the same script runs twice."""

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


SCRIPTS = {
    "comprehension": """
def own(logits, expert):
    return torch.tensor([bool(x) for x in logits[:, 0] > 0])
""",
    "lambda": """
def own(logits, expert):
    return (lambda values: values > 0)(logits[:, 0])
""",
    "generator": """
def own(logits, expert):
    return torch.tensor(list(bool(x) for x in logits[:, 0] > 0))
""",
    "nested function": """
def own(logits, expert):
    def positive(x):
        return x > 0
    return positive(logits[:, 0])
""",
    "closure over a function": """
def make(test):
    return lambda logits, expert: test(logits[:, 0])
own = make(lambda x: x > 0)
""",
}


def sampler_of(script: str):
    """The script run anew: every code object lies at another address."""
    namespace = {"torch": torch}
    exec(compile(script, "script.py", "exec"), namespace)
    return namespace["own"]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_script_run_twice_finds_its_own_run(script, tmp_path):
    first = make_world().tint(sampler=sampler_of(script), run_dir=tmp_path)
    stamp = (tmp_path / "coefficients.safetensors").stat().st_mtime_ns
    again = make_world().tint(sampler=sampler_of(script), run_dir=tmp_path)
    torch.testing.assert_close(figures(again), figures(first), rtol=1e-5, atol=1e-6)  # through curves.csv
    assert (tmp_path / "coefficients.safetensors").stat().st_mtime_ns == stamp  # loaded, not trained again
    with pytest.raises(ValueError, match=r"another run: settings\.sampler"):
        make_world().tint(sampler=sampler_of(script.replace("> 0", "> 1")), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "own = lambda a, b: (a - b).abs().flatten(1).mean(1)",
            "own = lambda a, b: (a - b).square().flatten(1).mean(1)",
        ),
        ("def own(a, b, share=0.5):\n    return a", "def own(a, b, share=0.7):\n    return a"),
        ("def own(a, b, *, share=0.5):\n    return a", "def own(a, b, *, share=0.7):\n    return a"),
        ("own = lambda a, b: [x.abs() for x in a]", "own = lambda a, b: [x.square() for x in a]"),
    ],
    ids=[
        "another method",
        "another default",
        "another keyword default",
        "another method in a comprehension",
    ],
)
def test_functions_that_do_something_else_are_told_apart(one, other):
    first, second = (ft.Settings(objective=sampler_of(script)).to_json() for script in (one, other))
    assert first != second
    assert first == ft.Settings(objective=sampler_of(one)).to_json()
