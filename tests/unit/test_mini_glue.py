"""The small GLUE: what its texts are, that its splits are disjoint, and that seeds count."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel

from fusion_tinting.mini import zoo
from fusion_tinting.mini.recipe import SPLITS
from fusion_tinting.mini.text import glue
from fusion_tinting.mini.text import rows as text_rows
from fusion_tinting.mini.text.rows import rows

RECIPE = replace(glue.RECIPES["roberta-mini_4"], train=2000, val=800, test=500)


@pytest.fixture(scope="module")
def splits():
    return {
        (task, split): RECIPE.make_dataset(task, split, seed=0) for task in glue.TASKS for split in SPLITS
    }


def test_no_text_is_in_two_splits_and_both_classes_are_in_each(splits):
    for task in glue.TASKS:
        texts = []
        for split in SPLITS:
            data = splits[task, split].to_pandas()
            assert len(data) == getattr(RECIPE, split)
            texts.append(set(data.drop(columns="label").agg(" ".join, axis=1)))
            frequent = data["label"].value_counts(normalize=True)
            assert frequent.max() < 0.56
            assert len(frequent) == (3 if task == "similarity" else 2)
        assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_labels_are_as_the_texts_say(splits):
    for row in splits["sentiment", "test"]:
        words = set(row["text"].split())
        assert row["label"] == (bool(words & set(glue.GOOD)) != bool(words & set(glue.NOT)))
    for row in splits["agreement", "test"]:
        subject, verb = row["text"].split()[1], row["text"].split()[-2]
        assert row["label"] == (subject.endswith("s") != verb.endswith("s"))
    for row in splits["paraphrase", "test"]:
        first, second = row["text"].split(), row["text_pair"].split()
        animals = [first[-4] in glue.ANIMALS, second[-1] == "animal"]
        assert [first[-1] in glue.ANIMALS, second[1] == "animal"] == [not animal for animal in animals]
        assert row["label"] == (animals[0] == animals[1])
    for row in splits["similarity", "test"]:
        words = (row[column].split()[3] for column in ("text", "text_pair"))
        first, second = (next(place for place, size in enumerate(glue.LARGE) if w in size) for w in words)
        assert row["label"] == 2 - abs(first - second)


def test_the_label_does_not_go_with_what_the_base_learns():
    """That is one of two things that it hangs on, drawn apart from the other."""
    for draw in (glue.sentiment, glue.agreement, glue.paraphrase, glue.similarity):
        rng = np.random.default_rng(0)
        _, _, labels, simpler = zip(*(draw(rng) for _ in range(4000)), strict=True)
        assert abs(np.corrcoef(labels, simpler)[0, 1]) < 0.05


def test_no_word_gives_a_label_away(splits):
    """Of the two labels, none is more than two in three of the texts that hold a word."""
    for task in ("sentiment", "agreement", "paraphrase"):
        data = splits[task, "train"].to_pandas()
        texts = data.drop(columns="label").agg(" ".join, axis=1).str.split().map(set)
        for word in set.union(*texts):
            labels = data["label"][texts.map(lambda words, word=word: word in words)]
            if len(labels) > 200:
                assert labels.mean() == pytest.approx(0.5, abs=0.17), (task, word)


def test_features_are_of_classes_or_of_a_number(splits):
    for task, kind in glue.TASKS.items():
        feature = splits[task, "val"].features["label"]
        if kind.regression:
            assert feature.dtype == "float32"
        else:
            assert feature == ClassLabel(names=kind.names)


def test_a_seed_makes_the_same_rows_and_another_others():
    assert rows(glue.TASKS, "paraphrase", 50, 1, "val") == rows(glue.TASKS, "paraphrase", 50, 1, "val")
    assert rows(glue.TASKS, "paraphrase", 50, 1, "val") != rows(glue.TASKS, "paraphrase", 50, 2, "val")


def test_the_base_learns_from_texts_that_its_tokenizer_knows():
    names = {name for task in glue.TASKS.values() for name in task.names}
    words, captions = set(text_rows.words(glue.TASKS)), text_rows.captions(glue.CORPUS)
    assert len(set(captions)) == len(captions) and not set(captions) & words - names
    known = words | set(text_rows.words(glue.CORPUS))
    for split in SPLITS:
        for text, pair, place in text_rows.captioned(glue.CORPUS, 50, 7, split):
            assert set(f"{text} {pair or ''}".split()) <= known
            assert captions[place] in known


def test_an_expert_that_is_built_again_alone_is_the_same(tmp_path):
    """Though the experts of this zoo continue one stream of random numbers."""
    tiny = replace(RECIPE, train=64, val=9, test=9, pretrain_steps=2, expert_steps=2, workers=0)
    zoo.build_in(tmp_path, tiny, 0, progress=False)
    folder = tmp_path / "paraphrase"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    torch.manual_seed(5)
    zoo.build_in(tmp_path, tiny, 0, progress=False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
