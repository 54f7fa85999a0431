"""`method=model_tinting/cross_task`: does an encoder's score with other tasks' heads predict its merge?"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import combinations, permutations
from typing import Any

from matplotlib.figure import Figure
from scipy import stats

from fusion_tinting.fusionbench.pools import PoolFamily
from fusion_tinting.fusionbench.studies import Scores, Study
from fusion_tinting.method.tints import AUTO
from fusion_tinting.reporting.studies import heat_map, scatter
from fusion_tinting.reporting.tables import Table
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

STATES = ("before", "after")
"""Of tinting."""


class CrossTask(Study):
    """The paper's pilot study, arXiv 2412.19098: cross-task performance against that of the merge.

    All scores are in percent of the task's expert, so that easy and hard tasks can be put in one plot.

    * cross-task (A, B): task B by the encoder of expert A, with B's own head. After tinting: with the tint
      of B that was trained on A's encoder, which stays as it is, against the predictions of expert B on B's
      unlabeled inputs.
    * merge (A, B), for A ≠ B: task B by θ₀ + λ (τ_A + τ_B), λ = `init`, with B's own head; after tinting
      with the tint of B that was trained on this encoder.
    * Pearson's r between the two, before and after, over the K (K − 1) ordered pairs. Pairs share tasks, so
      they are not independent, and p is smaller than it should be.
    * The same over the K tasks: the mean of cross-task (A, B) over A ≠ B, against B in the merge of all.

    Encoder A is the base that is merged onto, with λ = 0, and one adaptation trains all the tints.
    Returned is the merge of all tasks with its tints.

    Args:
        **options: as `Study`; `lr_coefficients` must be 0, and `layer` a layer.

    Raises:
        ValueError: λ that would be trained, no layer, a single task, or as `Study`, before anything is
            loaded.
    """

    name = "cross_task"

    def __init__(self, **options: Any):
        super().__init__(**options)
        _ = self.init  # refused before anything is loaded, where it is not one number
        if self.settings.get("lr_coefficients") != 0:
            raise ValueError(
                "The study cross_task tints given encoders: `method.lr_coefficients` must be 0. Found "
                f"{self.settings.get('lr_coefficients')}."
            )
        if self.settings.get("layer") == AUTO:
            raise ValueError(
                "The study cross_task tints one layer everywhere: `method.layer` must name it."
            )

    def check(self) -> None:
        """Refuse a single task.

        Raises:
            ValueError: there are fewer than two tasks.
        """
        if len(self.tasks) < 2:
            raise ValueError(f"The study cross_task needs at least two tasks. Found {self.tasks}.")

    def study(self, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]) -> TintedModel:
        """Score every encoder with every head, every pair merged, and all merged; return the last.

        Args:
            family: the models, loaded.
            unlabeled: task -> the inputs to adapt on.
        """
        tasks = self.tasks
        cross = {task: self._encoder_of(task, family, unlabeled) for task in tasks}
        experts = {task: cross[task]["before"][task] for task in tasks}
        pairs = {}
        for pair in combinations(tasks, 2):
            inputs = {task: unlabeled[task] for task in pair}
            model = self._tint(family, inputs, self.folder(" + ".join(pair)))
            pairs[pair] = self._scored(model, self.init, pair)
        merged = self._tint(family, unlabeled, self.folder("all merged"))
        together = self._scored(merged, self.init, tasks)
        cross, pairs = (self._in_shares(scores, experts) for scores in (cross, pairs))
        self._publish(cross, pairs, together, experts)
        return merged

    def _encoder_of(
        self, task: str, family: PoolFamily, unlabeled: Mapping[str, Unlabeled]
    ) -> dict[str, Scores]:
        base = deepcopy(family.experts[task])  # what experts share with the base has no task vector
        model = self._tint(family, unlabeled, self.folder(task), base=base, init=0.0)
        return self._scored(model, 0.0, self.tasks)

    def _scored(self, model: TintedModel, lam: float, tasks: Sequence[str]) -> dict[str, Scores]:
        return {"before": self.scores(model.remerged(lam), tasks), "after": self.scores(model, tasks)}

    def _in_shares(self, scores: Mapping, experts: Scores) -> dict:
        return {
            key: {state: self.shares(row, experts) for state, row in each.items()}
            for key, each in scores.items()
        }

    def _publish(self, cross: dict, pairs: dict, together: dict, experts: Scores) -> None:
        together = {state: self.shares(row, experts) for state, row in together.items()}
        over_pairs = {state: of_pairs(cross, pairs, state) for state in STATES}
        over_tasks = {state: of_tasks(cross, together, state) for state in STATES}
        content: dict[str, Any] = {
            "experts": experts,
            "cross_task": cross,
            "merged_pairs": {" + ".join(pair): scores for pair, scores in pairs.items()},
            "merged_all": together,
            "correlation": {
                "over_pairs": {state: correlation(*xy) for state, xy in over_pairs.items()},
                "over_tasks": {state: correlation(*xy) for state, xy in over_tasks.items()},
            },
        }
        correlations = content["correlation"]
        tables = [*(self._matrix(cross, together, state) for state in STATES), _correlations(correlations)]
        self.publish(content, tables, _figure(cross, over_pairs, correlations["over_pairs"]))

    def _matrix(self, cross: dict, together: dict, state: str) -> Table:
        rows = [[a, *each[state].values()] for a, each in cross.items()]
        rows.append([f"merge, λ = {self.init}", *together[state].values()])
        caption = (
            f"Rows: the encoder, of an expert or of all merged. Columns: the head's task. {self.protocol}"
        )
        title = f"Score, % of the head's expert, {state} tinting"
        return Table(["", *self.tasks], rows, title=title, caption=caption)


def of_pairs(cross: dict, pairs: dict, state: str) -> tuple[list[float], list[float]]:
    """Return cross-task and merged scores, (K (K − 1),) each, of the ordered pairs of different tasks.

    Args:
        cross: encoder's task -> state -> head's task -> score.
        pairs: pair of tasks -> state -> task -> score of their merge.
        state: `before` or `after` tinting.
    """
    ordered = list(permutations(cross, 2))
    merged = {**pairs, **{(b, a): scores for (a, b), scores in pairs.items()}}
    return [cross[a][state][b] for a, b in ordered], [merged[a, b][state][b] for a, b in ordered]


def of_tasks(cross: dict, together: dict, state: str) -> tuple[list[float], list[float]]:
    """Return mean cross-task scores, and those of the merge of all, (K,) each.

    Args:
        cross: encoder's task -> state -> head's task -> score.
        together: state -> task -> score of the merge of all.
        state: `before` or `after` tinting.
    """
    others = {b: [cross[a][state][b] for a in cross if a != b] for b in cross}
    return [sum(each) / len(each) for each in others.values()], [together[state][b] for b in cross]


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float | int | None]:
    """Return Pearson's `r`, its two-sided `p`, and the number of `points`.

    r and p are None where the points are fewer than three, or where all x or all y are equal.

    Args:
        x: one number for each point.
        y: another number for each point.
    """
    r, p = stats.pearsonr(x, y) if len(x) > 2 and len({*x}) > 1 and len({*y}) > 1 else (math.nan, math.nan)
    known = not math.isnan(r)
    return {"r": float(r) if known else None, "p": float(p) if known else None, "points": len(x)}


def _correlations(correlations: dict) -> Table:
    rows = [
        [f"{over.replace('over_', 'over the ')}, {state} tinting", each["r"], each["p"], each["points"]]
        for over, states in correlations.items()
        for state, each in states.items()
    ]
    return Table(
        ["points", "r", "p", "number"],
        rows,
        title="Cross-task score against the merge's: Pearson's correlation",
        caption="Points that share a task are not independent.",
        digits=".3g",
    )


def _figure(cross: dict, points: dict, correlations: dict) -> Figure:
    count = len(cross)
    figure = Figure(figsize=(9 + 0.9 * count, 3.6 + 0.25 * count), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    matrices = {state: [list(each[state].values()) for each in cross.values()] for state in STATES}
    every = [value for matrix in matrices.values() for row in matrix for value in row]
    for axes, state in zip(panels, STATES, strict=False):
        tasks, title = list(cross), f"{state} tinting, % of the expert"
        span = min(every), max(every)
        heat_map(axes, matrices[state], rows=tasks, columns=tasks, title=title, span=span)
        axes.set(xlabel="head of", ylabel="encoder of" if state == "before" else "")
        if state != "before":
            axes.set_yticklabels([])
    groups = {f"{state} tinting, {_label(correlations[state])}": points[state] for state in STATES}
    labels = {"xlabel": "encoder A, head B: % of expert B", "ylabel": "A and B merged: % of expert B on B"}
    scatter(panels[2], groups, title=f"{count * (count - 1)} pairs (A, B)", **labels)
    return figure


def _label(correlation: dict) -> str:
    return "no r" if correlation["r"] is None else f"r = {correlation['r']:.2f}, p = {correlation['p']:.2g}"
