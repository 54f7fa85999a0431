"""Labels as people have them: hidden, missing, by number, by name, in another order than the head's."""

import math

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import List as Column
from transformers import BertConfig

from fusion_tinting.families.labels import NO_LABEL, names_of
from fusion_tinting.families.rows import Rows
from fusion_tinting.mergekit.report import score
from fusion_tinting.method.objectives import Reads

pytestmark = pytest.mark.quick

MOODS = {"negative": 0, "positive": 1}
STARS = {"1": 0, "2": 1, "3": 2}


def rows(labels: list, classes: list[str] | None = None) -> Rows:
    features = Features({"y": ClassLabel(names=classes)}) if classes else None
    return Rows(Dataset.from_dict({"y": labels}, features=features), "the data", {"label": "y"})


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["POSITIVE", "negative", "Positive "], MOODS, [1, 0, 1]),
        (["Not Equivalent", "not-equivalent"], {"equivalent": 0, "not_equivalent": 1}, [1, 1]),
        (["LABEL_1", "label_0"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0]),
        (["LABEL_1", "0"], MOODS, [1, 0]),
        ([True, False], MOODS, [1, 0]),
        ([1.0, 0.0], MOODS, [1, 0]),
        (["2", "1"], STARS, [1, 0]),
        ([-1, 1], MOODS, [NO_LABEL, 1]),
        ([None, 0], MOODS, [NO_LABEL, 0]),
        (["", "positive"], MOODS, [NO_LABEL, 1]),
        ([NO_LABEL, 1], MOODS, [NO_LABEL, 1]),
        ([float("nan"), 1.0], MOODS, [NO_LABEL, 1]),
    ],
)
def test_a_label_is_found_by_number_or_name_and_what_is_hidden_is_none(labels, names, expected):
    assert rows(labels).labels(len(names), names).tolist() == expected


@pytest.mark.parametrize("labels", [[-1, -1], [None, -1], ["", "-1"]])
def test_a_column_of_hidden_labels_is_as_if_it_were_not_there(labels):
    column = [None if label is None else str(label) for label in labels]
    assert rows(column).labels(2, MOODS) is None
    assert rows([-1.0, -1.0]).labels(1, {}) is None


def test_values_may_be_missing_and_a_rating_of_minus_one_is_one():
    found = rows([None, 2.5, -1.0]).labels(1, {})
    assert found[0].isnan() and found[1:].tolist() == [2.5, -1.0]
    assert rows(["2.5", "3"]).labels(1, {}).tolist() == [2.5, 3]


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (["positive", "negative"], MOODS, [1, 0]),
        (["Negative", "POSITIVE"], MOODS, [0, 1]),
        (["neg", "pos"], {"LABEL_0": 0, "LABEL_1": 1}, [0, 1]),
        (["3", "1", "2"], STARS, [2, 0]),
        (["positive", "mixed"], {"negative": 0, "mixed": 1, "positive": 2}, [2, 1]),
    ],
)
def test_the_classes_of_the_data_are_found_by_their_names(classes, names, expected):
    assert rows([0, 1], classes).labels(len(names), names).tolist() == expected
    assert rows([-1, 1], classes).labels(len(names), names).tolist() == [NO_LABEL, expected[1]]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["bad", "good"], MOODS),
        (["negative", "neutral", "positive"], MOODS),
        (["positive", "Positive"], MOODS),
        (["Yes", "no"], {"YES": 0, "yes": 1}),
    ],
)
def test_classes_of_which_nobody_can_tell_which_is_which_are_refused(classes, names):
    with pytest.raises(ValueError, match=r"the data calls them .*: which is which"):
        rows([0, 1], classes).labels(len(names), names)


def test_names_that_the_configuration_gives_stand_for_the_datas_order():
    assert rows([0, 1], ["n01", "n02"]).labels(2, {"tench": 0, "goldfish": 1}, own=False).tolist() == [0, 1]
    assert rows([0, 1], ["b", "a"]).labels(2, {"a": 0, "b": 1}, own=False).tolist() == [1, 0]


def test_a_number_that_is_also_another_classs_name_is_refused():
    with pytest.raises(ValueError, match=r"Row 0 .* has the label 1.*may be output 1, or the output 0"):
        rows([1, 2]).labels(3, STARS)
    with pytest.raises(ValueError, match="Row 1 of the data has the label 'Yes'"):
        rows(["yes", "Yes"]).labels(2, {"YES": 0, "yes": 1})
    with pytest.raises(ValueError, match=r"Row 0 of the data has the label \[0, 1\]"):
        rows([[0, 1]]).labels(2, MOODS)


def test_tags_are_found_by_name_and_what_is_hidden_is_none():
    table = {"words": [["a", "b", "c"]], "y": [["per", "O", ""]]}
    data = Rows(Dataset.from_dict(table), "the data", {"text": "words", "label": "y"})
    assert data.tags(2, {"O": 0, "PER": 1}) == [[1, 0, NO_LABEL]]
    features = Features({"words": Column(Value("string")), "y": Column(ClassLabel(names=["PER", "O"]))})
    table = {"words": [["a", "b"]], "y": [[0, -1]]}
    data = Rows(Dataset.from_dict(table, features=features), "the data", {"text": "words", "label": "y"})
    assert data.tags(2, {"O": 0, "PER": 1}) == [[1, NO_LABEL]]


def test_the_report_counts_what_has_a_label_alone():
    logits = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    assert score(logits, torch.tensor([NO_LABEL, 1, 0])) == 0.5
    values = torch.tensor([[1.0], [2.0], [9.0], [3.0]])
    assert math.isclose(score(values, torch.tensor([1.0, 2.0, float("nan"), 3.0])), 1, abs_tol=1e-6)


@pytest.mark.parametrize("reads", [Reads.VALUES, Reads.LABELS, Reads.ARG_MAX])
def test_classes_are_scored_as_classes_whatever_was_learned(reads):
    logits = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert score(logits, torch.tensor([0, 1, NO_LABEL]), reads) == 1
    tags = torch.stack([logits, logits.roll(1, 1)], -1)  # of two words a text
    assert score(tags, torch.tensor([[0, 1], [0, NO_LABEL], [1, NO_LABEL]]), reads) == 0.75


@pytest.mark.parametrize("other", [None, {"LABEL_0": 0, "LABEL_1": 1}, {"0": 0, "1": 1}])
def test_a_head_whose_names_stand_in_id2label_alone_has_them(other):
    config = BertConfig(id2label={0: "positive", 1: "negative"}, label2id=other)
    assert names_of(config) == {"positive": 0, "negative": 1}
    told = BertConfig(id2label={0: "neg", 1: "pos"}, label2id={"bad": 0, "good": 1})  # what a user has said
    assert names_of(told) == {"bad": 0, "good": 1}
