"""How `benchmarks/families.py` sums up what its runs have reported."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def families(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("families")


def report(scores: dict[str, dict[str, float]], **baselines: dict[str, float]) -> dict:
    return {"seconds": 3.0, "model_info": {}, **scores, "baselines": baselines}


IMAGES = report(
    {"one": {"accuracy": 0.9, "loss": 1.0}, "two": {"accuracy": 0.4, "loss": 1.0}},
    pretrained={"one": 0.5, "two": 0.1}, task_arithmetic={"one": 0.6, "two": 0.2},
    expert={"one": 1.0, "two": 0.5},
)  # fmt: skip
ADAMERGED = IMAGES | {"one": {"accuracy": 0.7}, "two": {"accuracy": 0.35}}
TEXTS = report(
    {"agreement": {"accuracy": 0.8, "matthews": 0.6}, "similarity": {"pearson": 0.7, "spearman": 0.1}},
    pretrained={"agreement": 0.4, "similarity": 0.0}, task_arithmetic={"agreement": 0.6, "similarity": 0.5},
    expert={"agreement": 0.8, "similarity": 1.0},
)  # fmt: skip


def test_shares_are_of_each_experts_score_and_adamerging_stands_where_it_applies(families):
    row = families.summary("resnet-mini_3", {0: {"tinted": IMAGES, "adamerging": ADAMERGED}})
    shares = row["by_zoo"][0]
    expected = {"pretrained": 35.0, "task_arithmetic": 50.0, "adamerging": 70.0, "tinted": 85.0}
    assert shares == pytest.approx(expected)
    assert row["seconds"] == {0: {"tinted": 3.0, "adamerging": 3.0}}


def test_texts_are_scored_by_the_metric_that_their_baselines_have(families):
    row = families.summary("roberta-mini_4", {0: {"tinted": TEXTS}, 1: {"tinted": TEXTS}})
    assert list(row["scores"][0]) == ["agreement accuracy", "similarity pearson"]
    assert row["by_zoo"][1] == pytest.approx({"pretrained": 25, "task_arithmetic": 62.5, "tinted": 85})


def test_the_table_is_empty_where_there_is_no_adamerging(families):
    pools = {
        "resnet-mini_3": {0: {"tinted": IMAGES, "adamerging": ADAMERGED}},
        "roberta-mini_4": {0: {"tinted": TEXTS}},
    }
    outcome = {"pools": {pool: families.summary(pool, reports) for pool, reports in pools.items()}}
    lines = families.table(outcome).markdown().splitlines()
    assert lines[2].startswith("| `resnet-mini_3` | `method=model_tinting_fast method.layer=auto")
    assert lines[2].endswith("| 35.0 % | 50.0 % | 70.0 % | 85.0 % | 1 |")
    assert lines[3].endswith("| 25.0 % | 62.5 % |  | 85.0 % | 1 |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("given", [[], ["resnet-mini_3", "nyuv2-mini_3"]])
def test_pools_can_be_named(families, monkeypatch, given):
    monkeypatch.setattr("sys.argv", ["families.py", *given])
    assert families.BENCHMARK.parse().pools == given


def test_an_unknown_pool_is_refused(families, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["families.py", "resnet-mini_4"])
    with pytest.raises(SystemExit):
        families.BENCHMARK.parse()
    assert "unknown pool(s) ['resnet-mini_4']" in capsys.readouterr().err


def test_each_way_is_one_run_a_zoo_and_texts_are_not_adamerged(families, monkeypatch):
    plans = []

    class Recorder:
        def all(self, plan: dict) -> dict:
            plans.append(plan)
            return dict.fromkeys(plan, IMAGES)

    monkeypatch.setattr(families, "runner", lambda pool, options: Recorder())
    options = type("Options", (), {"zoos": [0, 2]})
    assert set(families.reports("openclip-mini_3", options)[2]) == {"tinted", "adamerging"}
    assert set(families.reports("roberta-mini_4", options)[0]) == {"tinted"}
    assert [len(plan) for plan in plans] == [4, 2]
    entropy = plans[0]["openclip-mini_3", "zoo 2", "adamerging"]
    assert "method.objective=entropy" in entropy and "modelpool.zoo_seed=2" in entropy
    assert "method.adapt_split=val" in entropy
