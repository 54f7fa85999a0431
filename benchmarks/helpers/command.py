"""The runner of every benchmark: options, progress, and the files of results."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.files import read_json
from helpers.machine import about

RESULTS = Path(__file__).resolve().parents[1] / "results"
SHARED: dict[str, dict[str, Any]] = {
    "pools": {"nargs": "*", "help": "model pools (default: all)"},
    "--pool": {"help": "model pool"},
    "--seeds": {"type": int, "nargs": "+", "default": [0, 1, 2], "help": "adaptation seeds"},
    "--zoos": {"type": int, "nargs": "+", "default": [0, 1, 2], "help": "zoo seeds"},
    "--jobs": {"type": int, "default": 2, "help": "processes at a time"},
    "--work": {"type": Path, "help": "where runs are kept"},
    "--results": {"type": Path, "default": RESULTS, "help": "the folder where results go"},
    "--json": {"type": Path, "help": "write everything measured into this file, and the table beside it"},
    "--plot": {"type": Path, "help": "draw into this file"},
    "--quick": {"action": "store_true", "help": "tiny models and few steps, less than a minute"},
}
"""Options that several benchmarks have -> their arguments of `ArgumentParser.add_argument`."""


def beside_json(options: argparse.Namespace, _: dict) -> Path | None:
    """Return the path that `--json` names."""
    return options.json


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
        doc: the command's docstring, whose first paragraph describes it.
        measure: options -> everything measured, for the JSON; hardware and versions are added to it.
        table: that -> the table, or tables, printed and written beside the JSON; None for no table.
        options: option -> arguments of `ArgumentParser.add_argument`, which complete those of `SHARED`.
        path: (options, everything measured) -> where the JSON goes; None for nowhere.
        page: everything measured -> the Markdown file, where it is more than the tables.
        draw: (options, everything measured, path of the JSON) -> None; draws the figures.
        check: changes options, or raises a ValueError that says what is wrong with them.
    """

    doc: str
    measure: Callable[[argparse.Namespace], dict]
    table: Callable[[dict], Table | Sequence[Table]] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Callable[[argparse.Namespace, dict], Path | None] = beside_json
    page: Callable[[dict], str] | None = None
    draw: Callable[[argparse.Namespace, dict, Path | None], None] | None = None
    check: Callable[[argparse.Namespace], None] | None = None

    def main(self) -> None:
        """Run the command with the arguments of this process."""
        self.run(self.parse())

    def parse(self) -> argparse.Namespace:
        """Return the options that this process was given."""
        parser = argparse.ArgumentParser(description=self.doc.split("\n\n")[0])
        for name, arguments in self.options.items():
            parser.add_argument(name, **{**SHARED.get(name, {}), **arguments})
        options = parser.parse_args()
        if self.check is not None:
            try:
                self.check(options)
            except ValueError as error:
                parser.error(str(error))
        return options

    def run(self, options: argparse.Namespace) -> None:
        """Measure, show the table, and write JSON, Markdown and figures."""
        outcome = {"command": f"python benchmarks/{Path(sys.argv[0]).name}"} | self.measure(options)
        outcome = about(getattr(options, "device", "cpu")) | outcome
        table = self._markdown(outcome)
        print(table, end="\n" if table else "", flush=True)
        path = self.path(options, outcome)
        if path is not None:
            save(path, outcome)
            if text := table if self.page is None else self.page(outcome):
                path.with_suffix(".md").write_text(text)
            print(f"Written: {path}")
        if self.draw is not None:
            self.draw(options, outcome, path)

    def _markdown(self, outcome: dict) -> str:
        tables = () if self.table is None else self.table(outcome)
        each = (tables,) if isinstance(tables, Table) else tables
        return "\n".join(f"{table.markdown()}\n" for table in each)


def save(path: Path, outcome: dict) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n")


def known_pools(path: Path) -> dict[str, dict]:
    """Return pool -> results of an earlier outcome, which a run of a few pools completes."""
    return read_json(path)["pools"] if path.is_file() else {}
