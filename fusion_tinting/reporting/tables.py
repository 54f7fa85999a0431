"""The closing tables."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn

from fusion_tinting.method.objectives import agreement
from fusion_tinting.method.tinted_model import OneTask, TintedModel
from fusion_tinting.run.experts import predict
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.unlabeled import Unlabeled


def show(table: Table) -> None:
    """Print a table to standard output, in colour where the terminal has it."""
    Console().print(table)


@dataclass(frozen=True)
class Metric:
    """One score of a task.

    Attributes:
        key: its name in a task pool's report.
        title: what a table calls it.
        scale: what the report's value is multiplied with to be shown.
        better: `higher` or `lower`; of an error, less is better.
    """

    key: str
    title: str
    scale: float = 100.0
    better: str = "higher"

    def share(self, value: float, expert: float) -> float:
        """How much of the expert is kept, in per cent: value / expert, of an error the inverse."""
        top, bottom = (value, expert) if self.better == "higher" else (expert, value)
        return 100 * top / bottom if bottom else float("nan")


ACCURACY = Metric("accuracy", "Accuracy %")


def score_table(report: Mapping, model: TintedModel, metrics: Mapping[str, Metric]) -> Table:
    """The score of each task for the baselines of a task pool's report and the tinted model; the last
    column is the tinted model's share of the expert's score.

    Args:
        report: as `TintedEvaluation.evaluate` returns it.
        model: the tinted model, whose `info` tells the split it was adapted on.
        metrics: task -> the score that counts for it. Only a common one is averaged, and titles the table.
    """
    tasks = [task for task in model.tasks if task in report]
    columns = _columns(report, model, metrics, tasks)
    common = len({metrics[task] for task in tasks}) == 1
    title = metrics[tasks[0]].title if common else "Scores"
    table = Table(title=title, caption=_protocol(model), caption_justify="left")
    table.add_column("task")
    for label in columns:
        table.add_column(label, justify="right", style="bold" if label == "tinted" else None)
    if "expert" in columns:
        table.add_column("tinted /\nexpert", justify="right")
    for task in tasks:
        name = task if common else f"{task}, {metrics[task].title}"
        table.add_row(
            *_row(name, {label: values[task] for label, values in columns.items()}, metrics[task])
        )
    means = {label: sum(values[task] for task in tasks) / len(tasks) for label, values in columns.items()}
    table.add_section()
    if common:
        table.add_row(*_row("average", means, metrics[tasks[0]]), style="bold")
    elif "expert" in columns:
        shares = [metrics[t].share(columns["tinted"][t], columns["expert"][t]) for t in tasks]
        blank = [""] * len(columns)
        table.add_row("average", *blank, f"{sum(shares) / len(shares):.1f}", style="bold")
    return table


def _columns(report: Mapping, model: TintedModel, metrics: Mapping[str, Metric], tasks: list[str]) -> dict:
    """Column title -> task -> score."""
    init = model.info.get("settings", {}).get("init")
    labels = {
        "pretrained": "pre-trained",
        "task_arithmetic": f"Task\nArithmetic\nλ = {init}",
        "expert": "expert",
    }
    baselines = report.get("baselines", {})
    columns = {label: baselines[name] for name, label in labels.items() if name in baselines}
    return {**columns, "tinted": {task: report[task][metrics[task].key] for task in tasks}}


def agreement_table(
    model: TintedModel,
    experts: Mapping[str, nn.Module],
    heads: Mapping[str, nn.Module],
    inputs: Mapping[str, Mapping[str, Unlabeled]],
    split: str,
    processes: Processes,
) -> Table:
    """Agreement with each expert, for when no task pool tells accuracies.

    Args:
        inputs: column title -> task -> the inputs to compare on.
        split: where those inputs are from.
    """
    table = Table(
        title=f"Agreement with the experts %, on the {split} split",
        caption="For accuracies name a task pool, for example taskpool=clip-vit-b32_TA8.",
        caption_justify="left",
    )
    table.add_column("task")
    for column in inputs:
        table.add_column(column, justify="right")
    sums = [0.0] * len(inputs)
    for task in model.tasks:
        shares = [
            _agreement(model, experts[task], heads[task], unlabeled[task], task, processes)
            for unlabeled in inputs.values()
        ]
        sums = [total + share for total, share in zip(sums, shares, strict=True)]
        table.add_row(task, *(f"{100 * share:.1f}" for share in shares))
    table.add_section()
    table.add_row("average", *(f"{100 * total / len(model.tasks):.1f}" for total in sums), style="bold")
    return table


def _agreement(model, expert, head, unlabeled, task: str, processes: Processes) -> float:
    theirs = predict(expert, head, unlabeled, processes=processes)
    ours = predict(OneTask(model, task), nn.Identity(), unlabeled, processes=processes)
    return float(agreement(ours, theirs, of_values=model.tells_values(task)).mean())


def _row(name: str, values: Mapping[str, float], metric: Metric) -> list[str]:
    cells = [name, *(f"{metric.scale * value:.1f}" for value in values.values())]
    if values.get("expert"):
        cells.append(f"{metric.share(values['tinted'], values['expert']):.1f}")
    return cells


def _protocol(model: TintedModel) -> str:
    split = model.info.get("split")
    if split is None:
        return "Scored on the test split."
    if split == "test":
        return "Adapted on the unlabelled test split itself (transductive)."
    return f"Adapted on the unlabelled {split} split, scored on the test split (inductive)."
