"""What `mergekit-tint learn` refuses: one clear error, and nothing written."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_mergekit_learn import invoke, make_world, refused, write_config, write_rows
from transformers import AutoModelForMaskedLM


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, "roberta", AutoModelForMaskedLM, {"two": 2, "three": 3})
    make_world(folder / "other", "bert", AutoModelForMaskedLM, {"two": 2})
    write_rows(folder / "labels.jsonl", [{"text": "a dog", "label": value} for value in (0, 1, 2, 5)])
    (folder / "empty.jsonl").touch()
    (folder / "junk.jsonl").write_text("{ not json\n")
    return folder


CHANGES = {
    "unknown key": ({"modles": []}, r"Unknown key .* `modles`\. Did you mean `models`"),
    "unknown setting": ({"adapt": {"stesp": 3}}, r"Did you mean `steps`"),
    "bad setting": ({"adapt": {"steps": -3}}, r"`steps` must be a whole number"),
    "unknown key of data": ({"data": {"txet": "a"}}, r"Did you mean `text`"),
    "bad share": ({"data": {"split": 3}}, r"`split` of data .*must be a share"),
    "unknown family": ({"family": "bert"}, r"Unknown family `bert`"),
    "another family": (
        {"family": "token_classification"},
        r"`family: token_classification` is not that of .* of the family sequence_classification",
    ),
    "no base": ({"base_model": None}, r"lacks `base_model`"),
    "absent base": ({"base_model": "nowhere/base"}, r"`nowhere/base` is neither here nor"),
    "column of another family": ({"data": {"image": "picture"}}, r"`data\.image` .* has no effect"),
    "no column": ({"data": {"text": "sentence"}}, r"Unknown text column .* `sentence`.*`text`"),
    "unknown layer": ({"adapt": {"layer": "block:9"}}, r"index from -2 to 1"),
}
CHANGES_OF_A_MODEL = {
    "one task twice": ({"task": "three"}, r"task of its own"),
    "no task": ({"task": None}, r"models\[0\] .*lacks `task`"),
    "unknown key of a model": ({"lables": "x"}, r"Did you mean `labels`"),
    "absent model": ({"model": "nowhere/model"}, r"`nowhere/model` is neither here nor"),
    "absent file": ({"data": "gone.jsonl"}, r"There is no file `gone\.jsonl`"),
    "absent data set": ({"data": "nobody/nothing"}, r"`nobody/nothing` is neither here nor"),
    "empty file": ({"data": "empty.jsonl"}, r"empty\.jsonl` \(task `two`\) is empty"),
    "junk file": ({"data": "junk.jsonl"}, r"junk\.jsonl` \(task `two`\) cannot be read"),
    "labels of another head": (
        {"data": "labels.jsonl", "labels": "label"},
        r"Row 2 of .*labels\.jsonl` .* has the label 2 .* expected a class from 0 to 1",
    ),
    "no label column": ({"labels": "truth"}, r"Unknown label column .* `truth`"),
    "another architecture": ({"model": "other/two"}, r"architecture bert; the base .* of roberta"),
    "another kind of model": ({"model": "base"}, r"lacks 4 tensor\(s\), \['classifier"),
}


def check(world: Path, run: Path, config: Path, message: str, monkeypatch) -> None:
    monkeypatch.chdir(world)
    said = " ".join(refused("learn", config, run).split())
    assert re.search(message, said), said
    assert not run.exists()


@pytest.mark.quick
@pytest.mark.parametrize("case", CHANGES)
def test_a_configuration_that_cannot_be(world, tmp_path, monkeypatch, case):
    change, message = CHANGES[case]
    content = {**yaml.safe_load((world / "config.yml").read_text()), **change}
    check(world, tmp_path / "run", write_config(tmp_path / "config.yml", content), message, monkeypatch)


@pytest.mark.parametrize("case", CHANGES_OF_A_MODEL)
def test_a_model_or_its_data_that_cannot_be(world, tmp_path, monkeypatch, case):
    change, message = CHANGES_OF_A_MODEL[case]
    content = yaml.safe_load((world / "config.yml").read_text())
    content["models"][0] |= change
    content["family"] = "sequence_classification"
    check(world, tmp_path / "run", write_config(tmp_path / "config.yml", content), message, monkeypatch)


def test_junk_in_place_of_a_configuration(world, tmp_path, monkeypatch):
    for text, message in {
        "[": "is no YAML",
        "words": "must be a mapping",
        "": "must be a mapping",
    }.items():
        (tmp_path / "config.yml").write_text(text)
        check(world, tmp_path / "run", tmp_path / "config.yml", message, monkeypatch)
    check(world, tmp_path / "run", tmp_path / "none.yml", "There is no configuration", monkeypatch)


@pytest.fixture
def copied(world, tmp_path) -> dict:
    """A configuration whose first expert may be changed."""
    content = yaml.safe_load((world / "config.yml").read_text())
    shutil.copytree(world / "two", tmp_path / "two")
    content["models"][0]["model"] = str(tmp_path / "two")
    return content


def test_an_expert_without_tokenizer(world, tmp_path, monkeypatch, copied):
    for path in (tmp_path / "two").glob("*token*"):
        path.unlink()
    config = write_config(tmp_path / "config.yml", copied)
    check(world, tmp_path / "run", config, r"expert of `two`, `.*two`, has no tokenizer", monkeypatch)


def test_an_expert_with_another_vocabulary(world, tmp_path, monkeypatch, copied):
    path = tmp_path / "two/tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    config = write_config(tmp_path / "config.yml", copied)
    check(world, tmp_path / "run", config, r"vocabulary of the expert", monkeypatch)


def test_the_folder_of_another_run(world, tmp_path):
    content = yaml.safe_load((world / "config.yml").read_text())
    config = write_config(tmp_path / "config.yml", content)
    invoke("learn", config, tmp_path / "run", "--quiet")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    content["adapt"]["seed"] = 7
    assert "seed" in refused("learn", write_config(config, content), tmp_path / "run", "--quiet")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_show_of_a_folder_without_a_run(tmp_path):
    assert "holds no finished run" in refused("show", tmp_path)
