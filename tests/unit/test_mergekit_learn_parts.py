"""The pure parts of `mergekit-tint learn` and `show`."""

import json

import pytest
import torch
from transformers import BertConfig, ViTConfig
from world import TASKS, make_world

from fusion_tinting.families.loading import objective_of
from fusion_tinting.families.rows import Inputs, Rows
from fusion_tinting.mergekit import report
from fusion_tinting.mergekit.config import Data, Expert
from fusion_tinting.mergekit.report import score
from fusion_tinting.mergekit.rows import rows_of
from fusion_tinting.mergekit.show import by_block
from fusion_tinting.method.objectives import Reads
from fusion_tinting.run.unlabeled import Unlabeled


@pytest.fixture
def rows(tmp_path):
    """Rows with one column of labels."""

    def make(labels: list) -> Rows:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": "a", "truth": label}) + "\n" for label in labels))
        return rows_of(Expert(model="m", task="t", data=Data(path=str(path), label="truth")))

    return make


def test_coefficients_are_gathered_by_block():
    row = torch.tensor
    found = by_block(
        {
            "r.embeddings.norm.weight": row([0.0, 1.0]),
            "r.embeddings.norm.bias": row([1.0, 0.0]),
            "r.layer.0.q.weight": row([0.2, 0.4]),
            "r.layer.10.q.weight": row([0.6, 0.6]),
            "r.layer.0.k.weight": row([0.4, 0.6]),
            "r.layer.10.q.bias (tinted)": row([0.3, 0.3]),
        }
    )
    assert list(found) == ["r.embeddings.norm", "r.layer.0", "r.layer.10", "r.layer.10 (tinted)"]
    torch.testing.assert_close(found["r.embeddings.norm"], row([0.5, 0.5]))
    torch.testing.assert_close(found["r.layer.0"], row([0.3, 0.5]))


def test_the_score_of_classes_is_accuracy_and_of_a_single_output_correlation():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [5.0, 1.0]])
    assert score(logits, torch.tensor([0, 1, 1, 1])) == 0.5
    assert score(
        torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([5.0, 3.0, 1.0])
    ).item() == pytest.approx(-1)


def test_the_score_of_several_labels_is_each_labels_own():
    logits = torch.tensor([[2.0, -1.0, 1.0], [-3.0, 1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert score(logits, labels, Reads.LABELS).item() == pytest.approx(5 / 6)


def test_the_score_of_several_values_is_their_mean_correlation():
    values = torch.tensor([[1.0, 1.0], [2.0, 4.0], [3.0, 9.0]])
    assert score(values, values * torch.tensor([1.0, -2.0]), Reads.VALUES).item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize(
    ("problem", "outputs", "objective"),
    [
        ("multi_label_classification", 4, "sigmoid"),
        ("multi_label_classification", 1, "sigmoid"),
        ("regression", 3, "l1"),
        ("regression", 1, None),  # a single output is a number to every objective
        ("single_label_classification", 4, None),
        (None, 4, None),
    ],
)
def test_how_an_expert_was_trained_says_how_it_teaches(problem, outputs, objective):
    for kind in (BertConfig, ViTConfig):
        assert objective_of(kind(problem_type=problem, num_labels=outputs)) == objective


def test_several_labels_are_numbers_or_names(rows):
    names = {"cat": 0, "dog": 1, "owl": 2}
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert rows([["cat", "owl"], [], ["dog"]]).several(3, names).tolist() == expected
    assert rows(expected).several(3, names).tolist() == expected
    assert rows([[0.5, 2], [1, 3.5]]).several(2, {}).tolist() == [[0.5, 2], [1, 3.5]]


@pytest.mark.parametrize("bad", [[1, 0], ["cat", "bee"], 1, [1, 0, 1, 0]])
def test_several_labels_that_the_head_does_not_have(rows, bad):
    with pytest.raises(ValueError, match=r"Row 1 .*expected 3 numbers"):
        rows([[1, 0, 0] if bad == 1 or isinstance(bad[0], int) else ["cat"], bad]).several(
            3, {"cat": 0, "dog": 1, "owl": 2}
        )


def test_labels_are_places_or_names(rows):
    names = {"bad": 0, "good": 1}
    assert rows([0, 1, 1]).labels(2, names).tolist() == [0, 1, 1]
    assert rows(["good", "bad"]).labels(2, names).tolist() == [1, 0]
    assert rows([0.5, 4]).labels(1, {}).dtype == torch.float32


@pytest.mark.parametrize("bad", [-2, 2, 0.5, "2", "great"])
def test_a_label_that_the_head_does_not_have(rows, bad):
    with pytest.raises(ValueError, match=r"Row 0 of .* expected a class from 0 to 1"):
        rows([bad]).labels(2, {"bad": 0, "good": 1})


def test_a_single_output_takes_numbers(rows):
    with pytest.raises(ValueError, match="expected a number"):
        rows(["high"]).labels(1, {"LABEL_0": 0})


@pytest.mark.parametrize("other", ["labels", "inputs", "none"])
def test_a_report_is_taken_up_of_the_same_inputs_and_labels_alone(tmp_path, other):
    world = make_world()
    model = world.tint(run_dir=tmp_path / "run")

    def aside(seed, known):
        torch.manual_seed(seed)
        return {task: Inputs(Unlabeled.of(torch.randn(6, 5)), torch.tensor(known)) for task in TASKS}

    changed = {"labels": (0, [1] * 6), "inputs": (1, [0] * 6), "none": (0, [0] * 6)}[other]
    first = report.compare(model, aside(0, [0] * 6), run_dir=tmp_path / "run")
    again = report.compare(model, aside(*changed), run_dir=tmp_path / "run")
    assert again == report.compare(model, aside(*changed))
    assert (again == first) == (other == "none")
