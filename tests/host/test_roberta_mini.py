"""`roberta-mini_4` from nothing, trained half as long: the bars that it reaches even so, scored on test."""

from dataclasses import replace

import pytest

from fusion_tinting import mini
from fusion_tinting.mini.text import glue

POOLS = ("modelpool=roberta-mini_4", "taskpool=roberta-mini_4")
HEADLINE = {task: "pearson" if task == "similarity" else "accuracy" for task in glue.TASKS}


def share(scores: dict[str, float], experts: dict[str, float]) -> float:
    """Mean over tasks of score / expert, in per cent."""
    return 100 * sum(scores[task] / experts[task] for task in experts) / len(experts)


@pytest.fixture(scope="module")
def built(cache):
    """The mini, smaller than users get it; made in this process, for another would import all anew."""
    name = "roberta-mini_4"
    less = {"train": 2000, "val": 600, "test": 500, "expert_steps": 100, "workers": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(glue.RECIPES, name, replace(glue.RECIPES[name], **less))
        yield mini.build(0, recipe=name)


def test_the_order_that_is_claimed(built, fuse):
    options = ("method=model_tinting", "method.num_workers=0", "method.adapt_split=val", "method.steps=30")
    report = fuse(*POOLS, *options)["report"]
    base = report["baselines"]
    tinted = {task: report[task][name] for task, name in HEADLINE.items()}
    plain, arithmetic, kept = (
        share(scores, base["expert"]) for scores in (base["pretrained"], base["task_arithmetic"], tinted)
    )
    assert plain < arithmetic < kept
    assert arithmetic <= 90
    assert kept >= 95 and kept >= arithmetic + 5


def test_fusionbenchs_own_methods_run_on_the_unlabeled_val_split(built, fuse):
    unlabeled = "modelpool.test_datasets=${modelpool.val_datasets}"
    report = fuse(*POOLS, "method=simple_average", unlabeled)["report"]
    assert set(report) == {"model_info", *glue.TASKS, "average"}
