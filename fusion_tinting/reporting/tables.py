"""The closing tables."""

from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fusion_tinting.experts import predict
from fusion_tinting.objectives import agreement
from fusion_tinting.processes import Processes
from fusion_tinting.tinted_model import TintedModel
from fusion_tinting.unlabeled import Unlabeled


def show(table: Table) -> None:
    """Print a table to standard output, in colour where the terminal has it."""
    Console().print(table)


def accuracy_table(report: Mapping, model: TintedModel) -> Table:
    """Accuracy of each task for the baselines of a task pool's report and the tinted model; the last
    column is the tinted model's share of the expert's accuracy.

    Args:
        report: as `TintedCLIPVisionModelTaskPool.evaluate` returns it.
        model: the tinted model, whose `info` tells the split it was adapted on.
    """
    tasks = [task for task in model.tasks if task in report]
    baselines = report.get("baselines", {})
    init = model.info.get("settings", {}).get("init")
    labels = {
        "pretrained": "pre-trained",
        "task_arithmetic": f"Task\nArithmetic\nλ = {init}",
        "expert": "expert",
    }
    columns = {label: baselines[name] for name, label in labels.items() if name in baselines}
    columns["tinted"] = {task: report[task]["accuracy"] for task in tasks}
    table = Table(title="Accuracy %", caption=_protocol(model), caption_justify="left")
    table.add_column("task")
    for label in columns:
        table.add_column(label, justify="right", style="bold" if label == "tinted" else None)
    if "expert" in columns:
        table.add_column("tinted /\nexpert", justify="right")
    for task in tasks:
        table.add_row(*_row(task, {label: values[task] for label, values in columns.items()}))
    means = {label: sum(values[task] for task in tasks) / len(tasks) for label, values in columns.items()}
    table.add_section()
    table.add_row(*_row("average", means), style="bold")
    return table


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
    return float(agreement(ours, theirs).mean())


class OneTask(nn.Module):
    """One task of a tinted model, as an encoder that gives its logits."""

    def __init__(self, model: TintedModel, task: str):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs=None, **tokens) -> torch.Tensor:
        return self.model(tokens if inputs is None else inputs, self.task)

    def __deepcopy__(self, memo) -> "OneTask":
        return self  # `predict` copies what it runs; the model and its task vectors are ours already


def _row(name: str, values: Mapping[str, float]) -> list[str]:
    cells = [name, *(f"{100 * value:.1f}" for value in values.values())]
    if values.get("expert"):
        cells.append(f"{100 * values['tinted'] / values['expert']:.1f}")
    return cells


def _protocol(model: TintedModel) -> str:
    split = model.info.get("split")
    if split is None:
        return "Scored on the test split."
    if split == "test":
        return "Adapted on the unlabelled test split itself (transductive)."
    return f"Adapted on the unlabelled {split} split, scored on the test split (inductive)."
