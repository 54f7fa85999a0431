"""Writes the leaderboard: JSON with everything, a Markdown table, and the plots beside it."""

from pathlib import Path

import board_plots
from common import save
from rows import PUBLISHED
from runs import shown

from fusion_tinting.run.files import write_text

HEAD = (
    "method", "adapted on", "accuracy %", "% of experts", "worst task", "data", "steps", "images a task",
    "λ, or scale", "extra parameters a task", "task known", "seconds", "peak MB",
)  # fmt: skip


def write(path: Path, found: dict) -> None:
    save(path, found)
    write_text(path.with_suffix(".md"), markdown(found))
    board_plots.write_all(path, found)
    print(table(found))


def markdown(found: dict) -> str:
    """Table, notes, figures of others."""
    notes = [f"* {row['name']}: {row['notes']}." for row in found["rows"] if row.get("notes")]
    zoo = f", zoo seed {found['zoo_seed']}" if found["zoo_seed"] else ""
    parts = [
        f"# {found['pool']}{zoo}: {len(found['tasks'])} tasks",
        table(found),
        EXPLANATION.format(software=", ".join(f"{n} {v}" for n, v in found["versions"].items()), **found),
        "\n".join(dict.fromkeys(notes)),
        "## Published, not ours",
        "Accuracy % as others report it, transductive where a method adapts; none of it was repeated "
        "here, and the mini pools' models are others.",
        published(),
    ]
    return "\n\n".join(parts) + "\n"


EXPLANATION = """Accuracy on the `test` split, averaged over the tasks, ± the standard deviation over seeds.
*% of experts*: the mean over tasks of accuracy / accuracy of this pool's own expert for that task.
*Adapted on* `val` is the inductive protocol, `test` the transductive one: the very images that are scored,
without their labels. *Seconds*: FusionBench's `method.run`, which is loading the models, zero-shot heads,
merging and adaptation, without evaluation, of the fastest of the runs; a λ chosen by `val` labels took
that, and a pass over `val`, for each value. *Peak MB*: resident memory of the whole process, with
evaluation. *Extra parameters*: numbers stored beyond one encoder, divided by the tasks; a head tint is
counted although every method keeps a zero-shot head as large.

One CPU thread a process, {jobs} processes at a time, on {hardware}; {software}.
All processes together took {process_hours:.1f} hours, the choice of λ included."""


def table(found: dict) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in found["rows"]])


def short_table(found: dict) -> str:
    """One line a method, best first, for the README: accuracy % under both protocols, and what is asked."""
    by_name: dict[str, dict] = {}
    for row in found["rows"]:
        if "failed" not in row:
            by_name.setdefault(row["name"], {})[row.get("protocol")] = row
    lines = ["| method | inductive | transductive | data | task known |", "|---|---|---|---|---|"]
    for name, kinds in sorted(by_name.items(), key=lambda item: -_inductive(item[1])):
        told = [kinds.get(p, kinds.get(None)) for p in ("inductive", "transductive")]
        scores = [shown(row["accuracy"]) if row else "" for row in told]
        one = next(iter(kinds.values()))
        asks = ["", ""] if one["family"] == "reference" else _asks(one)
        lines.append(f"| {name} | {' | '.join([*scores, *asks])} |")
    return "\n".join(lines)


def _inductive(kinds: dict) -> float:
    return (kinds.get("inductive") or kinds.get(None) or {"accuracy": {"mean": 0}})["accuracy"]["mean"]


def _asks(row: dict) -> list[str]:
    return [row["data"], "yes" if row["task_identity"] else "no"]


def cells(row: dict) -> list[str]:
    """One row of the table; of a method that does not run, the reason."""
    split = row.get("adapted_on") or "–"
    if "failed" in row:
        reason = row["failed"].replace("|", "\\|")
        return [row["name"], split, f"does not run: {reason}", *[""] * (len(HEAD) - 3)]
    worst = row["worst_task"]
    scores = [
        shown(row["accuracy"]),
        shown(row["share_of_experts"]),
        f"{worst['accuracy']:.1f} {worst['task']}",
    ]
    if row["family"] == "reference":
        return [row["name"], split, *scores, *[""] * (len(HEAD) - 5)]
    return [
        row["name"], split, *scores, row["data"], number(row["steps"]), number(row["images_per_task"]),
        row["lam"], number(row["extra_parameters_per_task"]), "yes" if row["task_identity"] else "no",
        f"{row['adaptation_seconds']:.1f}" if row["adaptation_seconds"] else "?",
        f"{row['peak_memory_mb']['mean']:.0f}",
    ]  # fmt: skip


def number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", " ")


def published() -> str:
    names = list(dict.fromkeys(name for column in PUBLISHED.values() for name in column))
    lines = [f"| | {' | '.join(PUBLISHED)} |", "|---" * (len(PUBLISHED) + 1) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(column.get(name, '') for column in PUBLISHED.values())} |")
    return "\n".join(lines)
