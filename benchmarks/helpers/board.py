"""The leaderboard's table, its page, and the short table of the README."""

from fusion_tinting.reporting.tables import Table
from helpers.averages import plus_minus
from helpers.rows import PUBLISHED

HEAD = (
    "method", "adapted on", "accuracy %", "% of experts", "worst task", "data", "steps", "images a task",
    "λ, or scale", "extra parameters a task", "task known", "seconds", "peak MB",
)  # fmt: skip
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


def page(board: dict) -> str:
    """Return the Markdown page: the table, notes, and figures that others report."""
    notes = [f"* {row['name']}: {row['notes']}." for row in board["rows"] if row.get("notes")]
    zoo = f", zoo seed {board['zoo_seed']}" if board["zoo_seed"] else ""
    software = ", ".join(f"{name} {version}" for name, version in board["versions"].items())
    parts = [
        f"# {board['pool']}{zoo}: {len(board['tasks'])} tasks",
        table(board).markdown(),
        EXPLANATION.format(software=software, **board),
        "\n".join(dict.fromkeys(notes)),
        "## Published, not ours",
        "Accuracy % as others report it, transductive where a method adapts; none of it was repeated "
        "here, and the mini pools' models are others.",
        published().markdown(),
    ]
    return "\n\n".join(parts) + "\n"


def table(board: dict) -> Table:
    """Return the table of every method."""
    return Table(HEAD, [cells(row) for row in board["rows"]], numeric=False)


def short_table(board: dict) -> Table:
    """Return one row a method, best first: accuracy % under both protocols, and what the method needs."""
    by_name: dict[str, dict] = {}
    for row in board["rows"]:
        if "failed" not in row:
            by_name.setdefault(row["name"], {})[row.get("protocol")] = row
    rows = []
    for name, kinds in sorted(by_name.items(), key=lambda item: -_inductive(item[1])):
        each = [kinds.get(p, kinds.get(None)) for p in ("inductive", "transductive")]
        scores = [plus_minus(row["accuracy"]) if row else "" for row in each]
        one = next(iter(kinds.values()))
        rows.append([name, *scores, *(["", ""] if one["family"] == "reference" else _needs(one))])
    return Table(["method", "inductive", "transductive", "data", "task known"], rows, numeric=False)


def _inductive(kinds: dict) -> float:
    return (kinds.get("inductive") or kinds.get(None) or {"accuracy": {"mean": 0}})["accuracy"]["mean"]


def _needs(row: dict) -> list[str]:
    return [row["data"], "yes" if row["task_identity"] else "no"]


def cells(row: dict) -> list[str]:
    """Return one row of the table; of a method that does not run, with the reason."""
    split = row.get("adapted_on") or "–"
    if "failed" in row:
        return [row["name"], split, f"does not run: {row['failed']}", *[""] * (len(HEAD) - 3)]
    worst = row["worst_task"]
    scores = [
        plus_minus(row["accuracy"]),
        plus_minus(row["share_of_experts"]),
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
    """Return a whole number with blanks between its thousands."""
    return "–" if value is None else f"{value:,}".replace(",", " ")


def published() -> Table:
    """Return the table of figures that others report."""
    names = dict.fromkeys(name for column in PUBLISHED.values() for name in column)
    rows = [[name, *(column.get(name, "") for column in PUBLISHED.values())] for name in names]
    return Table(["", *PUBLISHED], rows, numeric=False)
