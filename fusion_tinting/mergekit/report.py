"""The closing tables of `mergekit-tint learn`: four merges and the experts, on inputs kept aside.

Each expert is asked once. Every way of merging is written into the one encoder that is in memory, which
holds the run's own λ again afterward.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusion_tinting.families.labels import is_labeled
from fusion_tinting.families.rows import Inputs
from fusion_tinting.method.content import content_hash
from fusion_tinting.method.merging import load_merged
from fusion_tinting.method.objectives import Reads, agreement, divergence
from fusion_tinting.reporting.tables import Table, compared, start_of
from fusion_tinting.run.artifact import COEFFICIENTS
from fusion_tinting.run.experts import outputs
from fusion_tinting.run.files import possibly, read_json, sha256, write_record
from fusion_tinting.run.peers import naming_the_lost
from fusion_tinting.run.processes import Processes, fitting_heap, sensible_threads
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.top_predictions import MANY_CLASSES, TOP, Predictions, dense, kept

REPORT = "report.json"
EXPERT, TINTED = "expert", "tinted"


class Measured(NamedTuple):
    """How a way of merging does on one task's inputs.

    Attributes:
        agreement: with the expert, in [0, 1].
        divergence: KL from the expert, nats; None where the output is a single number or a vector.
        score: accuracy or correlation; None without labels.
    """

    agreement: float
    divergence: float | None
    score: float | None


class TaskReport(NamedTuple):
    """How all ways of merging do on a task's inputs.

    Attributes:
        inputs: how many were looked at.
        data: a hash of them and of their labels.
        classes: how many an output distinguishes.
        reads: what of the expert is compared; a value of `Reads`.
        kind: what is scored, where it is not the accuracy of a class.
        labeled: how many of the inputs have a label.
        ways: way of merging -> how it does; the experts are the last way.
    """

    inputs: int
    data: str
    classes: int
    reads: str
    kind: str | None
    labeled: int
    ways: Mapping[str, Measured]


Report = Mapping[str, TaskReport]
"""Task -> how all ways of merging do on it."""


@naming_the_lost
def compare(
    model: TintedModel,
    aside: Mapping[str, Inputs],
    progress: bool = False,
    *,
    most: int | None = None,
    run_dir: Path | None = None,
    processes: Processes | None = None,
) -> Report:
    """Return how four ways of merging, and the experts, do on inputs kept aside.

    Args:
        model: the tinted model; its encoder is written into, and holds the run's λ afterward.
        aside: task -> the inputs kept aside.
        progress: whether to show a progress bar.
        most: how many inputs of a task are looked at, evenly spread; all by default.
        run_dir: where each task's figures are written as soon as they are there, and those that are there
            are read.
        processes: who share the model, of which the first writes; this one alone by default.
    """
    processes = processes or Processes(next(model.parameters()).device)
    path = None if run_dir is None else run_dir / REPORT
    looked_at = {task: _some(inputs, most or len(inputs.unlabeled)) for task, inputs in aside.items()}
    report = {} if path is None else _read(path, looked_at)
    todo = {task: inputs for task, inputs in looked_at.items() if task not in report}
    ways = _ways(model)
    total = (len(ways) + 1) * sum(len(inputs.unlabeled) for inputs in todo.values())
    with (
        _encoder_kept(model),
        fitting_heap(model.vectors.size, processes.device, lean=model.vectors.lean),
        sensible_threads(model.vectors.size, processes.device),
        tqdm(total=total, desc="Report", unit="input", disable=not progress, dynamic_ncols=True) as bar,
    ):
        for task, inputs in todo.items():
            report[task] = _of_task(model, task, inputs, ways, bar)
            if path is not None and processes.rank == 0:
                _write(path, report)
    return {task: report[task] for task in aside}


def _ways(model: TintedModel) -> dict[str, Tensor | None]:
    """Return way of merging -> its λ of every task; None for the tinted model's own."""
    count = len(model.tasks)
    start = torch.as_tensor(model.start, dtype=torch.float32).expand(count)
    return {
        "base": torch.zeros(count),
        f"average\nλ = 1/{count}": torch.full((count,), 1 / count),
        f"Task Arithmetic\nλ = {start_of(model)}": start,
        TINTED: None,
    }


@contextmanager
def _encoder_kept(model: TintedModel) -> Iterator[None]:
    """Give the encoder its own λ again when the context ends."""
    try:
        yield
    finally:
        load_merged(model.encoder, model.vectors, torch.stack(list(model.coefficients.values())))


def _of_task(
    model: TintedModel,
    task: str,
    inputs: Inputs,
    ways: Mapping[str, Tensor | None],
    bar: "tqdm[Any]",
) -> TaskReport:
    reads, known = model.reads(task), inputs.labels
    one_hot = torch.eye(len(model.tasks))[model.tasks.index(task)]
    expert = [kept(output, TOP) for output in _outputs(model, one_hot, task, inputs, bar)]
    measured = {
        way: _measured(_outputs(model, lam, task, inputs, bar), expert, inputs, reads)
        for way, lam in ways.items()
    }
    measured[EXPERT] = _measured(map(dense, expert), expert, inputs, reads)
    labeled = 0 if known is None else int(is_labeled(known).sum())
    first = dense(expert[0])
    kind = None if known is None else _kind(first, known, reads)
    classes = 1 if _single(first) else first.shape[1]
    count = len(inputs.unlabeled)
    return TaskReport(count, _hash(inputs), classes, reads.value, kind, labeled, measured)


def _hash(inputs: Inputs) -> str:
    labels = {} if inputs.labels is None else {"labels": inputs.labels}
    return f"{inputs.unlabeled.content()} {content_hash(labels)[:16]}"


@torch.no_grad()
def _outputs(
    model: TintedModel, lam: Tensor | None, task: str, inputs: Inputs, bar: "tqdm[Any]"
) -> Iterator[Tensor]:
    """Yield what a way of merging says of one batch after another, on the CPU."""
    own = torch.stack(list(model.coefficients.values()))
    load_merged(model.encoder, model.vectors, own if lam is None else lam)
    heads = dict(zip(model.tasks, model.heads, strict=True))
    plain = type(model)(model.encoder, heads, nn.ModuleList(), layer=None, vectors=model.vectors)
    asked = model if lam is None else plain
    processes, every = Processes(next(model.parameters()).device), range(len(inputs.unlabeled))
    for output in outputs(lambda batch: asked(batch, task), inputs.unlabeled, every, processes=processes):
        bar.update(len(output))
        yield output.cpu()


def _measured(
    ours: Iterable[Tensor], expert: Iterable[Predictions], inputs: Inputs, reads: Reads
) -> Measured:
    """Measure batch by batch, so that only one batch's outputs are in memory in full."""
    agreed, apart, outputs_kept = [], [], []
    for output, theirs in ((output, dense(told)) for output, told in zip(ours, expert, strict=True)):
        agreed.append(agreement(output, theirs, reads))
        if not _single(theirs) and reads in (Reads.ARG_MAX, Reads.DISTRIBUTION):
            apart.append(divergence(output, theirs))
        if inputs.labels is not None:
            outputs_kept.append(output)
    scored = inputs.labels is not None and bool(is_labeled(inputs.labels).any())
    return Measured(
        float(torch.cat(agreed).mean()),
        float(torch.cat(apart).mean()) if apart else None,
        float(score(torch.cat(outputs_kept), inputs.labels, reads)) if scored else None,
    )


def _some(inputs: Inputs, most: int) -> Inputs:
    """Return at most so many of the inputs, evenly spread."""
    count = len(inputs.unlabeled)
    if count <= most:
        return inputs
    rows = [place * count // most for place in range(most)]
    return Inputs(
        inputs.unlabeled.subset(rows), None if inputs.labels is None else inputs.labels[torch.tensor(rows)]
    )


def _read(path: Path, aside: Mapping[str, Inputs]) -> dict[str, TaskReport]:
    """Return the tasks of which a run has a report already, of the same inputs; none of a damaged file."""
    try:
        written = read_json(path)
        if written["coefficients"] != sha256(path.with_name(COEFFICIENTS)):
            return {}
        found = {task: _task_report(told) for task, told in written["tasks"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {task: told for task, told in found.items() if task in aside and told.data == _hash(aside[task])}


def _task_report(told: Mapping[str, Any]) -> TaskReport:
    ways = {way: Measured(**each) for way, each in told["ways"].items()}
    return TaskReport(**{**told, "ways": ways})


def _write(path: Path, report: Report) -> None:
    """Write a report, as far as there is room: it can be made again."""
    tasks = {
        task: {**told._asdict(), "ways": {way: each._asdict() for way, each in told.ways.items()}}
        for task, told in report.items()
    }
    coefficients = sha256(path.with_name(COEFFICIENTS))
    possibly(write_record, path, {"coefficients": coefficients, "tasks": tasks})


def tables(report: Report) -> Iterator[Table]:
    """Yield the tables of agreement with the experts, KL from them, and accuracy where there are labels.

    Args:
        report: as `compare` returns it.
    """
    where = f"on {_looked_at(report)} inputs kept aside"
    merged = [way for way in next(iter(report.values())).ways if way != EXPERT]
    measure = compared(Reads(told.reads) for told in report.values())
    agreed = _values(report, report, merged, lambda each: 100 * each.agreement)
    yield _table(f"{measure} the experts, %, {where}", agreed)
    classes = [task for task, told in report.items() if told.ways[EXPERT].divergence is not None]
    if classes:
        apart = _values(report, classes, merged, lambda each: each.divergence)
        many = any(report[task].classes > MANY_CLASSES for task in classes)
        yield replace(
            _table(f"KL(expert ‖ merged), nats, {where}", apart, ".4f"),
            caption=f"Of an expert its {TOP} likeliest classes; the others as equally likely."
            if many
            else "",
        )
    if labeled := [task for task, told in report.items() if told.ways[EXPERT].score is not None]:
        right = _values(report, labeled, [*merged, EXPERT], lambda each: 100 * each.score)
        titles = {task: _titled(task, report[task]) for task in labeled}
        right = {way: {titles[t]: value for t, value in each.items()} for way, each in right.items()}
        yield _table(f"Accuracy, %, {where}", right)


def _looked_at(report: Report) -> str:
    counts = {told.inputs for told in report.values()}
    return str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _kind(output: Tensor, labels: Tensor, reads: Reads) -> str | None:
    """Return what is scored of a task, where it is not the accuracy of its class."""
    if _of_classes(output, labels):
        return None
    return "each label" if reads is Reads.LABELS else "correlation"


def _of_classes(output: Tensor, labels: Tensor) -> bool:
    """Return whether labels are classes, whatever objective the outputs were taught by."""
    return not _single(output) and labels.shape[1:] != output.shape[1:]


def _titled(task: str, told: TaskReport) -> str:
    """Return a task's name in the table of accuracies, with what is special about its row."""
    notes = [] if told.kind is None else [told.kind]
    notes += [f"{told.labeled}/{told.inputs} labeled"] if 0 < told.labeled < told.inputs else []
    return f"{task} ({', '.join(notes)})" if notes else task


def _values(
    report: Report, tasks: Iterable[str], ways: Iterable[str], measure: Callable[[Measured], Any]
) -> dict[str, dict[str, float]]:
    """Return way of merging -> task -> a number."""
    return {way: {task: float(measure(report[task].ways[way])) for task in tasks} for way in ways}


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
