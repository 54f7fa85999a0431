"""The one table: what a terminal and Markdown show of the same rows."""

import io

import pytest
from rich.console import Console

from fusion_tinting.reporting.tables import Table

pytestmark = pytest.mark.quick


def rows_of(text: str) -> list[list[str]]:
    """The cells of a rendered table, line by line."""
    lines = [line for line in text.splitlines() if line[:1] in ("|", "│")]
    return [[cell.strip() for cell in line.strip("|│").replace("│", "|").split("|")] for line in lines]


def terminal(table: Table, width: int = 120, color: bool = False) -> str:
    system = "truecolor" if color else None
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system=system)
    console.print(table.rich())
    return console.file.getvalue()


def test_markdown_is_a_table_under_its_title_with_the_caption_below():
    table = Table(
        ["layer", "size", "score"], [["head", 1234567, 87.123]], title="Layers", caption="Of one run."
    )
    lines = ["**Layers**", "", "| layer | size | score |", "| --- | ---: | ---: |"]
    assert table.markdown() == "\n".join([*lines, "| head | 1,234,567 | 87.1 |", "", "Of one run."])


def test_both_show_the_same_cells():
    rows = [["a", 0.0123, None], ["b", 12.345, 7], ["c", 0.0, "text"]]
    table = Table(["name", "value", "other"], rows, summary=["mean", 4.0, ""])
    cells = [["a", "0.0123", "–"], ["b", "12.3", "7"], ["c", "0.0", "text"]]
    assert rows_of(terminal(table)) == [*cells, ["mean", "4.0", ""]]
    assert rows_of(table.markdown())[2:] == [*cells, ["**mean**", "**4.0**", ""]]


def test_digits_are_those_of_every_number_with_a_point():
    table = Table(["name", "value"], [["a", 0.0123], ["b", 3]], digits=".3f")
    assert rows_of(table.markdown())[2:] == [["a", "0.012"], ["b", "3"]]


def test_what_is_bold_is_bold_in_both():
    table = Table(["task", "theirs", "ours"], [["cats", 1.0, 2.0]], bold="ours")
    assert rows_of(table.markdown())[2] == ["cats", "1.0", "**2.0**"]
    assert "\x1b[1m 2.0\x1b[0m" in terminal(table, color=True)
    assert "\x1b[1m   1.0\x1b[0m" not in terminal(table, color=True)


def test_texts_are_set_on_the_left_with_a_plain_ruler():
    table = Table(["", "what"], [["a", "b"]], numeric=False)
    assert table.markdown() == "| | what |\n|---|---|\n| a | b |"


def test_what_would_break_a_line_of_markdown_does_not():
    table = Table(["task", "Task\nArithmetic"], [["a | b", 1.0]])
    assert table.markdown().splitlines()[::2] == ["| task | Task Arithmetic |", r"| a \| b | 1.0 |"]


@pytest.mark.parametrize("width", [30, 60])
def test_nothing_is_cut_off_in_a_narrow_terminal(width):
    name = "encoder.layers.0.attention.output.dense.weight"
    lines = terminal(Table(["layer", "λ"], [[name, 0.3]]), width).splitlines()
    assert "".join(line.split("│")[1].strip() for line in lines if "│" in line) == name
