"""What FusionBench's host is given: pools of other kinds, own tasks, odd images and texts, no hub."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from fusion_bench import BaseTaskPool
from transformers import BertConfig, CLIPVisionModel

from fusion_tinting import mini
from fusion_tinting.families.labels import NO_LABEL
from fusion_tinting.fusionbench import checks
from fusion_tinting.fusionbench.pools import PoolFamily, read_data
from fusion_tinting.fusionbench.pools.text_classification import TextClassifierPool
from fusion_tinting.fusionbench.taskpools import TintedEvaluation
from fusion_tinting.fusionbench.taskpools.text_classification import SCORES, TextClassificationTaskPool


class Kind(PoolFamily):
    """A model pool of a family, of which nothing but the tasks is known."""

    tasks = ("one", "two")

    def __init__(self, name):
        self.name = name


def stock(module, name):
    return type(name, (BaseTaskPool,), {"__module__": f"fusion_bench.{module}"})()


@pytest.mark.parametrize(
    ("module", "name", "family", "advice"),
    [
        ("taskpool.lm_eval_harness.taskpool", "LMEvalHarnessTaskPool", "causal_lm", "with `~taskpool`"),
        ("taskpool.llama.test_generation", "LlamaTestGenerationTaskPool", "causal_lm", "with `~taskpool`"),
        ("taskpool.llama.reward_model", "RewardModelEvaluationTaskPool", "token_classification",
         "~taskpool"),
        ("taskpool.resnet_for_image_classification", "ResNetForImageClassificationTaskPool",
         "image_classification", "taskpool=resnet50"),
        ("taskpool.image_classification", "ImageClassificationTaskPool", "clip", "taskpool=clip-vit-b32"),
        ("taskpool.clip_vision.clip_smile_taskpool", "SmileCLIPVisionModelTaskPool", "clip", "clip-vit"),
        ("taskpool.gpt2_text_classification", "GPT2TextClassificationTaskPool", "sentence_embedding",
         "~taskpool"),
        ("compat.taskpool.flan_t5_glue_text_generation", "FlanT5GLUETextGenerationTaskPool", "seq2seq",
         "taskpool=flan-t5-base_glue"),
        ("taskpool.some_later_release", "NewTaskPool", "dense", "taskpool=nyuv2_resnet50"),
    ],
)  # fmt: skip
def test_a_stock_task_pool_that_cannot_score_a_tinted_model_is_refused(module, name, family, advice):
    with pytest.raises(ValueError, match=f"{name} would evaluate the shared encoder alone.*{advice}"):
        checks.taskpool(stock(module, name), Kind(family))


def test_a_task_pool_that_scores_nothing_switches_heads_or_is_the_users_own_goes_on():
    for module, name, family in (
        ("taskpool.dummy", "DummyTaskPool", "causal_lm"),
        ("taskpool.image_classification", "ImageClassificationTaskPool", "image_classification"),
    ):
        checks.taskpool(stock(module, name), Kind(family))
    checks.taskpool(None, Kind("seq2seq"))
    checks.taskpool(type("Mine", (BaseTaskPool,), {})(), Kind("clip"))


SHORT = ("method=model_tinting", "method.steps=1")
TASKS = ("mini-digits", "mini-textures", "mini-signs")
ALONE = [f"~{pool}.{part}.{task}" for task in TASKS[1:] for pool, part in (
    ("modelpool", "models"), ("taskpool", "test_datasets"))]  # fmt: skip


class Changed:
    """A data set whose rows are changed when they are read."""

    def __init__(self, table, change):
        self.table, self.change = table, change

    def __len__(self):
        return len(self.table)

    def __getitem__(self, place):
        return self.change(place, dict(self.table[place]))


def change_rows(monkeypatch, change) -> None:
    load = mini.load_dataset
    monkeypatch.setattr(
        mini, "load_dataset", lambda *args, **options: Changed(load(*args, **options), change)
    )


def test_images_are_read_alike_where_they_teach_and_where_they_are_scored(fuse, monkeypatch):
    plain = fuse(*SHORT, *ALONE)["report"]

    def change(place, row):
        colors = np.asarray(row["image"])
        if place % 2:
            return {**row, "image": torch.tensor(colors).permute(2, 0, 1) / 255}
        clear = np.dstack([colors, np.full(colors.shape[:2], 255, np.uint8)])
        return {**row, "image": clear.astype(np.uint16) * 257, "label": float(row["label"])}

    change_rows(monkeypatch, change)
    again = fuse(*SHORT, *ALONE, "method.run_dir=other", "report_save_path=mine.json")["report"]
    assert again == json.loads(Path("mine.json").read_text()) == plain


def test_an_image_that_cannot_be_read_is_named_and_a_hidden_label_before_anything_is_loaded(
    fuse, monkeypatch
):
    change_rows(monkeypatch, lambda place, row: {**row, "image": row["image"] if place != 5 else None})
    with pytest.raises(ValueError, match="Row 5 of the test split of `mini-digits` has no readable image"):
        fuse(*SHORT, *ALONE)
    with pytest.raises(ValueError, match="drop_last` would leave test images out"):
        fuse(*SHORT, *ALONE, "+taskpool.dataloader_kwargs.drop_last=true")
    monkeypatch.setattr("fusion_bench.modelpool.CLIPVisionModelPool.load_model", None)
    for label in (-1, 10, None, "seven"):
        change_rows(monkeypatch, lambda place, row, label=label: {**row, "label": label})
        with pytest.raises(
            ValueError, match=f"Row 0 of the test set of `mini-digits` has the label {label!r}"
        ):
            fuse(*SHORT, *ALONE)


def test_own_tasks_have_their_class_names_in_the_yaml(fuse):
    """The mini's own under another name give the mini's own scores."""
    data = "_target_: fusion_tinting.mini.load_dataset, task: mini-signs, split: test, recipe: clip-micro_3"
    rename = [f"~{pool}.{part}.{task}" for task in TASKS for pool, part in (
        ("modelpool", "models"), ("taskpool", "test_datasets"))]  # fmt: skip
    from fusion_tinting.mini.pictures.tasks import TASKS as KNOWN

    names = ", ".join(f'"{name}"' for name in KNOWN["mini-signs"].classnames)
    prompts = ", ".join(f'"{template}"' for template in KNOWN["mini-signs"].templates)
    own = [
        "+modelpool.models.own-signs=mini-signs",
        *(f"+{pool}.test_datasets.own-signs={{{data}}}" for pool in ("modelpool", "taskpool")),
    ]
    with pytest.raises(ValueError, match=r"`own-signs`.*\+taskpool.class_names.own-signs=\[cat, dog\]"):
        fuse(*SHORT, *rename, *own)
    named = (f"+taskpool.class_names.own-signs=[{names}]", f"+taskpool.templates.own-signs=[{prompts}]")
    report = fuse(*SHORT, *rename, *own, *named)["report"]
    others = [f"~{pool}.{part}.{task}" for task in TASKS[:2] for pool, part in (
        ("modelpool", "models"), ("taskpool", "test_datasets"))]  # fmt: skip
    theirs = fuse(*SHORT, *others, "method.run_dir=theirs")["report"]
    for key in ("pretrained", "expert", "task_arithmetic"):
        assert report["baselines"][key]["own-signs"] == theirs["baselines"][key]["mini-signs"]


DATA = "{_target_: datasets.load_dataset, path: nobody/data}"
GONE = {
    "modelpool.models.mini-digits=nobody/nothing": "`nobody/nothing`",
    "modelpool.models._pretrained_=./no/such/folder": "`./no/such/folder` (the model `_pretrained_`)",
    "modelpool.processor=nobody/nothing": "`nobody/nothing` (of the model pool)",
    "taskpool.processor=nobody/nothing": "`nobody/nothing`",
    "taskpool.clip_model=nobody/nothing": "`nobody/nothing` (the task pool's `clip_model`)",
    f"+modelpool.test_datasets.mini-digits={DATA}": "The test split of `mini-digits`",
    f"+taskpool.test_datasets.mini-digits={DATA}": "The test set of `mini-digits`",
}


@pytest.mark.parametrize("override", GONE)
def test_what_cannot_be_reached_is_named_with_the_pools_that_need_no_hub(fuse, tmp_path, override):
    instead = [f"~{override[1:].partition('=')[0]}"] if override[0] == "+" else []
    with pytest.raises(FileNotFoundError) as caught:
        fuse(*SHORT, *instead, override)
    said = str(caught.value)
    assert f"{GONE[override]} is neither here nor can it be reached: " in said
    assert "no download" in said and "clip-mini_8" in said and "\n" not in said
    assert not (tmp_path / "tinting").exists()


def test_a_base_without_its_text_tower_is_refused_for_its_heads_would_be_random(fuse, tmp_path):
    zoo = mini.build(0, recipe="clip-micro_3")
    CLIPVisionModel.from_pretrained(zoo / "pretrained").save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match=r"base `.*tower` is .*`clip_vision_model`.*no text tower to make"):
        fuse(*SHORT, f"modelpool.models._pretrained_={tmp_path}/tower")


def test_a_task_pool_of_another_family_without_tasks_or_with_a_reports_own_name_is_refused():
    class Ours(TintedEvaluation):
        scored = "clip"

        def __init__(self, *tasks):
            self._test_datasets = dict.fromkeys(tasks)

    for pool, family, message in (
        (
            Ours("one"),
            "seq2seq",
            "scores models of the family clip; .* of seq2seq.*taskpool=flan-t5",
        ),
        (Ours("one"), "causal_lm", "scores models of the family clip; .* of causal_lm.*~taskpool"),
        (Ours(), "clip", "has no `test_datasets`"),
        (Ours("average"), "clip", "Tasks cannot be called"),
        (Ours("three"), "clip", "for which the model pool has no expert"),
    ):
        with pytest.raises(ValueError, match=message):
            checks.taskpool(pool, Kind(family))
    checks.taskpool(Ours("two", "one"), Kind("clip"))


def text_pool(names: dict[str, int]) -> TextClassifierPool:
    """A model pool of one text classifier, of which nothing but its configuration is there."""
    pool = TextClassifierPool(None)
    config = BertConfig(label2id=names, id2label={place: name for name, place in names.items()})
    tokenizer = SimpleNamespace(model_max_length=16)
    pool.__dict__["family"] = SimpleNamespace(configs={"task": config}, tokenizer=tokenizer, objectives={})
    return pool


def test_labels_of_text_pools_are_numbers_or_names():
    pool = text_pool({"negative": 0, "positive": 1})
    for column in (["Positive", "negative", "positive"], ["1", "0", "1"], [True, False, True], [1.0, 0, 1]):
        labels, order = pool.labels("task", Dataset.from_dict({"label": column}))
        assert (labels.tolist(), order) == ([1, 0, 1], [0, 1])
    named = Features({"label": ClassLabel(names=["positive", "negative"])})
    labels, order = pool.labels("task", Dataset.from_dict({"label": [0, 1, -1]}, features=named))
    assert (labels.tolist(), order) == ([0, 1, NO_LABEL], [1, 0])
    with pytest.raises(ValueError, match=r"label 'good'.*expected a class from 0 to 1 or one of"):
        pool.labels("task", Dataset.from_dict({"label": ["good"]}))


def test_columns_of_labels_and_ids_are_no_texts():
    pool = text_pool({"negative": 0, "positive": 1})
    table = {"guid": ["a"], "text": ["good"], "label_text": ["positive"], "label": [1]}
    assert pool.rows("task", Dataset.from_dict(table), "here").columns == {"text": "text", "label": "label"}
    table = {"premise": ["a"], "hypothesis": ["b"], "category": ["c"], "prompt_id": ["d"]}
    columns = pool.rows("task", Dataset.from_dict(table), "here").columns
    assert columns == {"text": "premise", "text_pair": "hypothesis", "label": "label"}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"train": [1], "test": [2]}, r"has the parts \['train', 'test'\]: say with `split`"),
        (None, "returned nothing"),
        (iter([1]), "is a stream"),
        ([], "is empty"),
    ],
)
def test_data_that_are_no_rows(found, message):
    with pytest.raises(ValueError, match=f"he test set of `a` .*{message}"):
        read_data(lambda _: found, None, "the test set of `a`")


@pytest.mark.parametrize("named", ["accuracy", ["accuracy"]])
def test_one_metric_may_stand_without_brackets(named):
    assert TextClassificationTaskPool({}, {"a": named}).metric("a") == SCORES["accuracy"].metric
