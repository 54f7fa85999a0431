"""The closing tables of `mergekit-tint learn`: four merges and the experts, on inputs kept aside."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fusion_tinting.families.labels import is_labeled
from fusion_tinting.families.rows import Inputs
from fusion_tinting.method.objectives import Reads, agreement, divergence
from fusion_tinting.reporting.tables import Table, compared, start_of
from fusion_tinting.run.experts import outputs
from fusion_tinting.run.processes import Processes, sensible_threads
from fusion_tinting.run.tinted_model import TintedModel


class Measured(NamedTuple):
    """How a way of merging does on one task's inputs.

    Attributes:
        agreement: with the expert, (N,).
        divergence: KL from the expert, (N,); None where the output is a single number or a vector.
        output: (N, ...), where there are labels; None elsewhere: a vocabulary a token would be too much.
        reads: what of the expert is compared.
    """

    agreement: Tensor
    divergence: Tensor | None
    output: Tensor | None
    reads: Reads


Report = Mapping[str, Mapping[str, Measured]]
"""Way of merging -> task -> how it does; the experts are the last way."""


def compare(model: TintedModel, aside: Mapping[str, Inputs], progress: bool = False) -> Report:
    """Return how four ways of merging, and the experts, do on the inputs kept aside.

    Args:
        model: the tinted model.
        aside: task -> the inputs kept aside.
        progress: whether to show a progress bar.
    """
    count, start = len(model.tasks), model.start
    ways: dict[str, Callable[[], TintedModel]] = {
        "base": lambda: model.remerged(0.0),
        f"average\nλ = 1/{count}": lambda: model.remerged(1 / count),
        f"Task Arithmetic\nλ = {start_of(model)}": lambda: model.remerged(start),
        "tinted": lambda: model,
    }
    report: dict[str, dict[str, Measured]] = {name: {} for name in (*ways, "expert")}
    device = next(model.parameters()).device
    bar = tqdm(aside.items(), desc="Report", unit="task", disable=not progress, dynamic_ncols=True)
    with sensible_threads(model.vectors.size, device), bar:
        for task, inputs in bar:
            expert = model.remerged(task)
            for name, merge in (*ways.items(), ("expert", lambda expert=expert: expert)):
                report[name][task] = _measured(merge(), expert, task, inputs, model.reads(task))
    return report


def tables(report: Report, aside: Mapping[str, Inputs]) -> Iterator[Table]:
    """Yield the tables of agreement with the experts, KL from them, and accuracy where there are labels.

    Args:
        report: as `compare` returns it.
        aside: task -> the inputs kept aside, with their labels if there are any.
    """
    merged = {way: by_task for way, by_task in report.items() if way != "expert"}
    agreed = _values(merged, aside, lambda _, measured: 100 * measured.agreement.mean())
    measure = compared(measured.reads for measured in report["expert"].values())
    yield _table(f"{measure} the experts, %, on inputs kept aside", agreed)
    classes = [task for task in aside if report["expert"][task].divergence is not None]
    if classes:
        apart = _values(merged, classes, lambda _, measured: measured.divergence.mean())
        yield _table("KL(expert ‖ merged), nats, on inputs kept aside", apart, ".4f")
    known = {task: inputs.labels for task, inputs in aside.items() if inputs.labels is not None}
    if labeled := [task for task, labels in known.items() if is_labeled(labels).any()]:
        right = _values(report, labeled, lambda t, each: 100 * score(each.output, known[t], each.reads))
        kinds = {task: _kind(report["expert"][task], known[task]) for task in labeled}
        titles = {task: _titled(task, known[task], kinds[task]) for task in labeled}
        right = {way: {titles.get(t, t): value for t, value in each.items()} for way, each in right.items()}
        yield _table("Accuracy, %, on inputs kept aside", right)


def _kind(measured: Measured, labels: Tensor) -> str | None:
    """Return what is scored of a task, where it is not the accuracy of its class."""
    if _of_classes(measured.output, labels):
        return None
    return "each label" if measured.reads is Reads.LABELS else "correlation"


def _of_classes(output: Tensor, labels: Tensor) -> bool:
    """Return whether labels are classes, whatever objective the outputs were taught by."""
    return not _single(output) and labels.shape != output.shape


def _titled(task: str, labels: Tensor, kind: str | None) -> str:
    """Return a task's name in the table of accuracies, with what is special about its row."""
    count, every = int(is_labeled(labels).sum()), len(labels)
    notes = [] if kind is None else [kind]
    notes += [f"{count}/{every} labeled"] if labels.ndim == 1 and count < every else []
    return f"{task} ({', '.join(notes)})" if notes else task


def _values(report: Report, tasks: Iterable[str], measure: Callable[[str, Measured], Tensor]) -> dict:
    """Return way of merging -> task -> a number."""
    return {w: {t: float(measure(t, by_task[t])) for t in tasks} for w, by_task in report.items()}


def score(output: Tensor, labels: Tensor, reads: Reads = Reads.ARG_MAX) -> Tensor:
    """Return the accuracy of class logits, or of each label; or of values Pearson's correlation with them.

    Args:
        output: (N, C, ...), or (N, 1) for a single output.
        labels: (N, ...); what is no label counts nowhere. Of several labels or values (N, C).
        reads: what the task's objective reads of the expert.
    """
    known = is_labeled(labels)
    if _of_classes(output, labels):
        return (output.argmax(1) == labels)[known].float().mean()
    if reads is Reads.LABELS:
        return ((output > 0) == (labels > 0.5))[known].float().mean()
    pairs = zip(output.flatten(1).T, labels.reshape(len(labels), -1).T, strict=True)
    found = [torch.corrcoef(torch.stack(pair)[:, is_labeled(pair[1])])[0, 1] for pair in pairs]
    return torch.stack(found).mean()


def _measured(model: TintedModel, expert: TintedModel, task: str, inputs: Inputs, reads: Reads) -> Measured:
    """Measure batch by batch, so that only one batch's outputs are in memory."""
    processes = Processes(next(model.parameters()).device)

    def outputs_of(one: TintedModel) -> Iterator[Tensor]:
        every = range(len(inputs.unlabeled))
        return outputs(lambda batch: one(batch, task=task), inputs.unlabeled, every, processes=processes)

    agreed, apart, kept = [], [], []
    for ours, theirs in zip(outputs_of(model), outputs_of(expert), strict=True):
        agreed.append(agreement(ours, theirs, reads).cpu())
        if not _single(theirs) and reads in (Reads.ARG_MAX, Reads.DISTRIBUTION):
            apart.append(divergence(ours, theirs).cpu())
        if inputs.labels is not None:
            kept.append(ours.cpu())
    return Measured(torch.cat(agreed), _joined(apart), _joined(kept), reads)


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts) if parts else None


def _single(output: Tensor) -> bool:
    return output.ndim < 2 or output.shape[1] == 1


def _table(title: str, values: Mapping[str, Mapping[str, float]], digits: str = ".1f") -> Table:
    """Return the table of way of merging -> task -> value, with the average over the tasks."""
    tasks = list(next(iter(values.values())))
    return Table(
        ["task", *values],
        [[task, *(column[task] for column in values.values())] for task in tasks],
        title=title,
        summary=["average", *(sum(column.values()) / len(tasks) for column in values.values())],
        bold="tinted",
        digits=digits,
    )
