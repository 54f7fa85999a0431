"""What people write for `mergekit-tint`: paths, YAML and files of data. Right, or refused in one line."""

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fusion_tinting.mergekit import config, folders
from fusion_tinting.mergekit.cli import main
from fusion_tinting.mergekit.config import Data, Expert
from fusion_tinting.mergekit.rows import rows_of

pytestmark = pytest.mark.quick

CONFIG = """
base_model: ~/base
models:
  - {model: ~/cats, task: cats, data: ~/cats.jsonl}
  - {model: zoo/dogs, task: dogs, data: dogs.csv}
"""


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_users_folder_and_a_byte_order_mark(tmp_path):
    found = config.read(written(tmp_path / "config.yml", b"\xef\xbb\xbf" + CONFIG.encode()))
    home = os.path.expanduser("~")
    assert found.base_model == f"{home}/base" and found.experts[0].model == f"{home}/cats"
    assert found.experts[0].data.path == f"{home}/cats.jsonl" and found.experts[1].model == "zoo/dogs"


BAD_YAML = {
    "a key that is there twice": (CONFIG + "base_model: other\n", "the key `base_model` is there twice"),
    "a key of a model twice": (CONFIG.replace("task: cats", "task: a, task: b"), "`task` is there twice"),
    "a setting twice": (CONFIG + "adapt:\n  lr: 0.1\n  steps: 3\n  lr: 0.2\n", "`lr` is there twice"),
    "an alias within itself": (CONFIG + "adapt: &a {init: *a}\n", "Circular reference"),
    "two documents": (CONFIG + "---\n" + CONFIG, "holds 2 documents"),
    "tabs": ("base_model: b\nmodels:\n\t- a\n", "cannot start any token"),
    "UTF-16": (CONFIG.encode("utf-16"), "is no YAML"),
    "code": ("base_model: !!python/object/apply:os.getcwd []\n", "is no YAML"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_yaml_that_cannot_be_meant(tmp_path, case):
    text, message = BAD_YAML[case]
    with pytest.raises(ValueError, match=message):
        config.read(written(tmp_path / "config.yml", text))


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="It is a folder"):
        config.read(tmp_path)


def texts_of(path: Path, content: str | bytes, **data) -> list:
    written(path, content)
    return rows_of(Expert(model="m", task="t", data=Data(path=str(path), **data))).values("text")


def test_words_that_csv_readers_take_for_nothing(tmp_path):
    assert texts_of(tmp_path / "a.csv", "text\nNA\nnull\nNone\nn/a\n") == ["NA", "null", "None", "n/a"]


def test_lines_without_text_are_no_rows(tmp_path):
    assert texts_of(tmp_path / "a.txt", "one\n\n  \ntwo\r\n") == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_byte_order_mark_is_none_of_the_text(tmp_path, name):
    text = {"a.csv": "text\none\n", "a.jsonl": '{"text": "one"}\n'}.get(name, "one\n")
    assert texts_of(tmp_path / name, b"\xef\xbb\xbf" + text.encode()) == ["one"]


@pytest.mark.parametrize("ending", [".JSONL", ".Csv", ".TXT"])
def test_endings_of_any_case(tmp_path, ending):
    text = {".jsonl": '{"text": "a"}\n{"text": "b"}\n', ".csv": "text\na\nb\n"}.get(
        ending.lower(), "a\nb\n"
    )
    assert texts_of(tmp_path / f"rows{ending}", text) == ["a", "b"]


BAD_DATA = {
    "a header alone": ("rows.csv", "text,label\n", {}, "is empty"),
    "blank lines": ("rows.txt", "\n\n \n", {}, "is empty"),
    "a part with nothing in it": ("rows.jsonl", '{"text": "a"}\n', {"split": "train[:0]"}, "is empty"),
    "a column twice": ("rows.csv", "text,text\na,b\n", {}, "has two columns `text`"),
    "a column twice, with a mark": (
        "rows.csv",
        b"\xef\xbb\xbftext,a,text\na,b,c\n",
        {},
        "two columns `text`",
    ),
    "a comma in a text": ("rows.csv", "text,label\nthe good, the bad,1\n", {}, "3 values in its first row"),
    "a comma at the end": ("rows.csv", "\ntext\nthe good,\nbad,\n", {}, "no comma at the end of a line"),
    "the name of a data set's part": (
        "rows.jsonl",
        '{"text": "a"}\n',
        {"name": "sst2"},
        "no effect on a file",
    ),
    "another encoding": ("rows.csv", "text\ncaf\u00e9s\n".encode("latin-1"), {}, "cannot be read"),
    "another delimiter": ("rows.csv", "text;label\na;1\n", {}, "Unknown text column"),
    "another ending": ("rows.npy", "x", {}, "Unknown kind of file"),
    "a list": ("rows.jsonl", "[1]\n[2]\n", {}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_read(tmp_path, case):
    name, content, data, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message) as refusal:
        texts_of(tmp_path / name, content, **data)
    assert name in str(refusal.value)


def test_models_that_have_moved():
    moves = folders.moves_of(["/old/=/new", "hub/base=/here"])
    assert (
        folders.now_at("/old/cats", moves) == "/new/cats" and folders.now_at("hub/base", moves) == "/here"
    )
    assert folders.now_at("/older/cats", moves) == "/older/cats"
    folders.require_used(moves, ["/old/cats", "hub/base"])
    with pytest.raises(ValueError, match=r"--moved hub/base=/here.*\['/old/cats'\]"):
        folders.require_used(moves, ["/old/cats"])
    for bad in ("/old", "/old=", "=/new", ""):
        with pytest.raises(click.BadParameter, match="expected OLD=NEW"):
            folders.moves_of([bad])


def test_folders_that_cannot_be_written(tmp_path):
    written(tmp_path / "file", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "file")
    for out in ("file", "file/out", "link"):
        with pytest.raises(NotADirectoryError):
            folders.require_empty(tmp_path / out, force=True)
    folders.require_empty(tmp_path / "new" / "out", force=False)
    assert not (tmp_path / "new").exists()


COMMANDS = {
    "a mistyped command": (["lern", "a", "b"], 2, "Did you mean `learn`?"),
    "no command": ([], 2, "Usage"),
    "an option of another command": (["show", "a", "--task", "x"], 2, "No such option"),
    "an option before its command": (["--force", "variants", "a", "b"], 2, "No such option"),
    "too many": (["show", "a", "b"], 2, "unexpected extra argument"),
    "too few": (["variants", "a"], 2, "Missing argument 'OUT'"),
    "a folder for a file": (["learn", "{}", "run"], 2, "is a directory"),
    "a file for a folder": (["show", "{}/file"], 2, "is a file"),
    "no run": (["variants", "{}", "out"], 1, "holds no finished run"),
    "a move that is none": (["variants", "{}", "out", "--moved", "x"], 2, "expected OLD=NEW"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_lines(tmp_path, monkeypatch, case):
    arguments, code, message = COMMANDS[case]
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "file", json.dumps({}))
    result = CliRunner().invoke(main, [argument.format(tmp_path) for argument in arguments])
    assert result.exit_code == code and message in result.output, result.output
    assert isinstance(result.exception, SystemExit)


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    from fusion_tinting.mergekit import cli

    def stop(**_):
        raise KeyboardInterrupt("Stopped after iteration 3; `run/checkpoint` continues it.")

    monkeypatch.setattr(cli.show, "callback", stop)
    result = CliRunner().invoke(main, ["show", "run"])
    assert result.exit_code == 130 and "Stopped after iteration 3" in result.output
