"""The table of this package, for a terminal and as Markdown, and the closing tables made with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import rich.table
import torch
from rich.console import Console
from torch import nn

from fusion_tinting.method.objectives import Reads, agreement
from fusion_tinting.run.experts import predict
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.tinted_model import OneTask, TintedModel
from fusion_tinting.run.unlabeled import Unlabeled


@dataclass(frozen=True)
class Table:
    """Rows of cells under column titles.

    Attributes:
        columns: the column titles, of which the first is that of the rows' names. A line break in a title
            is a blank in Markdown.
        rows: a cell for each column: a number; None for a dash; anything else is shown as text.
        title: what the table shows, with the unit.
        caption: what a reader must know besides; shown below the table.
        summary: one more row, such as the average, which is set apart and bold.
        bold: title of the column that is bold.
        digits: format of floating-point cells; None for one decimal, and three digits of values below 0.1.
        numeric: whether all columns but the first are set on the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    caption: str = ""
    summary: Sequence[object] | None = None
    bold: str | None = None
    digits: str | None = None
    numeric: bool = True

    def markdown(self) -> str:
        """Return the table in Markdown under its title, with the caption below and no last line break."""
        columns = [column.replace("\n", " ") for column in self.columns]
        head = _line(columns) if columns[0] else _line(columns).replace("|  |", "| |", 1)
        ruler = "|---" * len(columns) + "|"
        if self.numeric:
            ruler = f"| --- |{' ---: |' * (len(columns) - 1)}"
        rows = [self._texts(row) for row in self.rows]
        if self.bold is not None:
            place = list(self.columns).index(self.bold)
            rows = [[*row[:place], _bold(row[place]), *row[place + 1 :]] for row in rows]
        if self.summary is not None:
            rows.append([_bold(text) for text in self._texts(self.summary)])
        table = "\n".join([head, ruler, *map(_line, rows)])
        return "\n\n".join(filter(None, (self.title and _bold(self.title), table, self.caption)))

    def rich(self) -> rich.table.Table:
        """Return the table for a terminal."""
        table = rich.table.Table(title=self.title, caption=self.caption or None, caption_justify="left")
        for place, column in enumerate(self.columns):
            style = "bold" if column == self.bold else None
            right = place > 0 and self.numeric
            table.add_column(column, justify="right" if right else "left", style=style, overflow="fold")
        for row in self.rows:
            table.add_row(*self._texts(row))
        if self.summary is not None:
            table.add_section()
            table.add_row(*self._texts(self.summary), style="bold")
        return table

    def _texts(self, row: Sequence[object]) -> list[str]:
        return [_text(cell, self.digits) for cell in row]


def show(table: Table) -> None:
    """Print a table to standard output, in color where the terminal has it.

    Args:
        table: the table.
    """
    Console().print(table.rich())


@dataclass(frozen=True)
class Metric:
    """One score of a task.

    Attributes:
        key: its name in a task pool's report.
        title: what a table calls it.
        scale: what the report's value is multiplied by to be shown.
        better: `higher` or `lower`; of an error, less is better.
    """

    key: str
    title: str
    scale: float = 100.0
    better: str = "higher"

    def share(self, value: float, expert: float) -> float:
        """Return the share of the expert's score that is kept, in percent.

        It is 100 · value / expert, and of an error its inverse.

        Args:
            value: the score of the model in question.
            expert: the score of the expert; both in the unit of the report.
        """
        top, bottom = (value, expert) if self.better == "higher" else (expert, value)
        return 100 * top / bottom if bottom else float("nan")


ACCURACY = Metric("accuracy", "Accuracy %")


def score_table(report: Mapping, model: TintedModel, metrics: Mapping[str, Metric]) -> Table:
    """Return the table of every task's score, of the baselines in a report and of the tinted model.

    The last column is the tinted model's share of the expert's score.

    Args:
        report: as `TintedEvaluation.evaluate` returns it.
        model: the tinted model, whose `info` has the split that it was adapted on.
        metrics: task -> the score that counts for it. Only a common one is averaged, and titles the table.
    """
    tasks = [task for task in model.tasks if task in report]
    scores = _scores(report, model, metrics, tasks)
    common = len({metrics[task] for task in tasks}) == 1
    names = {task: task if common else f"{task}, {metrics[task].title}" for task in tasks}
    rows = [_row(names[task], {k: v[task] for k, v in scores.items()}, metrics[task]) for task in tasks]
    summary = None
    if common:
        means = {column: sum(values[t] for t in tasks) / len(tasks) for column, values in scores.items()}
        summary = _row("average", means, metrics[tasks[0]])
    elif "expert" in scores:
        shares = [metrics[t].share(scores["tinted"][t], scores["expert"][t]) for t in tasks]
        summary = ["average", *[""] * len(scores), sum(shares) / len(shares)]
    return Table(
        ["task", *scores, *(["tinted /\nexpert"] if "expert" in scores else [])],
        rows,
        title=metrics[tasks[0]].title if common else "Scores",
        caption=protocol(model.info.split),
        summary=summary,
        bold="tinted",
        digits=".1f",
    )


def _scores(report: Mapping, model: TintedModel, metrics: Mapping[str, Metric], tasks: list[str]) -> dict:
    """Return column title -> task -> score."""
    titles = {
        "pretrained": "pre-trained",
        "task_arithmetic": f"Task\nArithmetic\nλ = {start_of(model)}",
        "expert": "expert",
    }
    baselines = report.get("baselines", {})
    columns = {title: baselines[name] for name, title in titles.items() if name in baselines}
    return {**columns, "tinted": {task: report[task][metrics[task].key] for task in tasks}}


def start_of(model: TintedModel) -> str:
    """Return the λ that a run started from, as tables show it: one number, or one for each task.

    Args:
        model: the tinted model.
    """
    return ", ".join(f"{value:.6g}" for value in torch.as_tensor(model.start).reshape(-1).tolist())


def _row(name: str, scores: Mapping[str, float], metric: Metric) -> list[object]:
    cells: list[object] = [name, *(metric.scale * score for score in scores.values())]
    if "expert" in scores:
        cells.append(metric.share(scores["tinted"], scores["expert"]) if scores["expert"] else "")
    return cells


def protocol(split: str | None) -> str:
    """Return the sentence that says on what a model was adapted and on what it is scored.

    Args:
        split: the split that it was adapted on; None where that is not known.
    """
    if split is None:
        return "Scored on the test split."
    if split == "test":
        return "Adapted on the unlabeled test split itself (transductive)."
    return f"Adapted on the unlabeled {split} split, scored on the test split (inductive)."


def agreement_table(
    model: TintedModel,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    inputs: Mapping[str, Mapping[str, Unlabeled]],
    split: str,
    processes: Processes,
) -> Table:
    """Return the table of agreement with each expert, for runs without a task pool that reports accuracies.

    Args:
        model: the tinted model.
        experts: task -> its expert.
        heads: task -> its head.
        inputs: column title -> task -> the inputs to compare on.
        split: where those inputs are from.
        processes: where the models run.
    """
    shares = {
        task: [_agreement(model, experts, heads, each[task], task, processes) for each in inputs.values()]
        for task in model.tasks
    }
    return Table(
        ["task", *inputs],
        [[task, *each] for task, each in shares.items()],
        title=f"{compared(map(model.reads, model.tasks))} the experts %, on the {split} split",
        caption="For accuracies name a task pool, for example taskpool=clip-vit-b32_TA8.",
        summary=["average", *(sum(each) / len(each) for each in zip(*shares.values(), strict=True))],
        digits=".1f",
    )


def compared(reads: Iterable[Reads]) -> str:
    """Return what `agreement` measures, for a title that goes on with `the experts`.

    Args:
        reads: of each task.
    """
    return "Cosine similarity to" if Reads.DIRECTION in set(reads) else "Agreement with"


def _agreement(
    model: TintedModel,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    unlabeled: Unlabeled,
    task: str,
    processes: Processes,
) -> float:
    """Return the mean agreement on one task's inputs, in percent."""
    theirs = predict(experts[task], heads[task], unlabeled, processes=processes)
    ours = predict(OneTask(model, task), nn.Identity(), unlabeled, processes=processes)
    return 100 * float(agreement(ours, theirs, model.reads(task)).mean())


def _text(cell: object, digits: str | None) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return format(cell, digits or (".3g" if 0 < abs(cell) < 0.1 else ".1f"))
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _bold(text: str) -> str:
    return f"**{text}**" if text else ""


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
