"""The house: who may import whom, and what editors and users see of the package."""

import ast
from pathlib import Path

import pytest
from importlinter import cli

import fusion_tinting as ft

pytestmark = pytest.mark.quick

PACKAGE = Path(ft.__file__).parent
ROOT = PACKAGE.parent


def test_every_room_imports_only_what_stands_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports(config_filename="pyproject.toml", cache_dir=None) == 0


def test_editors_see_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {*ft.__all__, *ft._MODULES}
    assert all(getattr(ft, name) is not None for name in seen)
    assert (PACKAGE / "py.typed").is_file()


def functions(room: str = ""):
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path.relative_to(PACKAGE), node


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def test_no_function_needs_scrolling():
    lengths = {f"{path}: {node.name}": length(node) for path, node in functions()}
    assert {name: lines for name, lines in lengths.items() if lines > 50} == {}
    ninth = sorted(lengths.values())[int(0.9 * len(lengths))]
    assert ninth <= 16
    assert lengths["tinting.py: tint"] <= 45


def test_every_function_says_what_it_returns():
    silent = [f"{path}: {node.name}" for path, node in functions() if node.returns is None]
    assert [name for name in silent if not name.endswith("__init__")] == []


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_file_is_read_at_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_text_file_is_read_and_written_as_utf8_whatever_the_locale():
    guessed = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:2])
            opens = name == "open" and isinstance(function, ast.Name) and not binary
            text = name == "read_text" or (name == "write_text" and isinstance(function, ast.Attribute))
            if (opens or text) and "encoding" not in [keyword.arg for keyword in node.keywords]:
                guessed.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert guessed == []
