"""`layer: auto`: which layer to tint, found without labels. The paper leaves the choice to the user.

Every layer that can be tinted is tried for a few joint iterations, and judged by how far the tinted model
agrees with the experts on inputs kept aside; the better half is tried again for twice as long, and so on.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace

from torch import nn
from tqdm.auto import tqdm

from fusion_tinting.method.adaptation import adapt
from fusion_tinting.method.objectives import agreement, l1
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tinted_model import OneTask, TintedModel
from fusion_tinting.method.tints import HEAD, make_tints, resolve_layer, tintable
from fusion_tinting.run.experts import LoadedExperts, predict
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.top_predictions import Predictions, dense
from fusion_tinting.run.unlabeled import Unlabeled, batch_schedule

SHARE = 1 / 3
"""What the choice may take of the iterations of the adaptation that follows: a third of its time."""
ASIDE = 256
"""Inputs of each task that layers are judged by, at most; at least one and at most a quarter of them."""


def choose_layer(
    model: TintedModel,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    *,
    processes: Processes | None = None,
    progress: bool = True,
) -> tuple[str, dict[str, list[float]]]:
    """The layer to tint, and layer -> its agreement with the experts in each round it took part in.

    Args:
        model: from `TintedModel.untrained` with `layer=None`; not changed.
        unlabeled, predictions: task -> its inputs, and what its expert predicts for them.
        settings: of the adaptation to come. The trials are joint, at its learning rates.

    Raises:
        ValueError: a task with a single input.
    """
    trial = _Trial(model, unlabeled, predictions, settings, processes or Processes())
    bare = [head for head in model.heads if not any(True for _ in head.parameters())]
    layers = [layer for layer in tintable(model.encoder) if layer != HEAD or not bare]
    candidates = [resolve_layer(model.encoder, layer) for layer in layers]
    if len(candidates) == 1:
        return candidates[0], {}
    found: dict[str, list[float]] = {layer: [] for layer in candidates}
    rounds = list(_rounds(len(candidates), int(SHARE * settings.steps)))
    with tqdm(
        desc="Choosing a layer",
        total=sum(count * steps for count, steps in rounds),
        disable=not (progress and trial.processes.rank == 0),
        dynamic_ncols=True,
    ) as bar:
        for count, steps in rounds:
            candidates = candidates[:count]
            for layer in candidates:
                found[layer].append(trial.agreement(layer, steps))
                bar.update(steps)
            candidates = sorted(candidates, key=lambda layer: -found[layer][-1])
    return candidates[0], {layer: values for layer, values in found.items() if values}


def _rounds(count: int, budget: int) -> Iterator[tuple[int, int]]:
    """(candidates, iterations each) of every round: half of the first, twice the second, within the budget.

    The first round takes place whatever it costs: nothing can be chosen without.
    """
    halvings = max(1, (count - 1).bit_length())
    steps = max(1, budget // (halvings * count))
    yield count, steps
    budget -= count * steps
    while count > 1:
        count, steps = (count + 1) // 2, 2 * steps
        budget -= count * steps
        if budget < 0 or count == 1:
            return
        yield count, steps


class _Trial:
    def __init__(self, model, unlabeled, predictions, settings: Settings, processes: Processes):
        self.model, self.settings, self.processes = model, settings, processes
        self.taught, self.aside = {}, {}
        for task, inputs in unlabeled.items():
            order = batch_schedule(len(inputs), len(inputs), 1, settings.seed, f"choice {task}")[0]
            count = max(1, min(ASIDE, len(inputs) // 4))
            if count == len(inputs):
                raise ValueError(f"Task `{task}` has a single input; `layer: auto` needs two.")
            for part, rows in ((self.aside, order[:count]), (self.taught, order[count:])):
                part[task] = inputs.subset(rows.tolist()), predictions[task][rows]
        heads = dict(zip(model.tasks, model.heads, strict=True))
        # From the task vectors: no checkpoint is read again.
        experts = LoadedExperts(model.tasks, lambda task: model.remerged(task).encoder)
        self.start = {"heads": heads, "experts": experts}

    def agreement(self, layer: str, steps: int) -> float:
        """With the experts, after so many joint iterations with a layer as the tint; mean over tasks."""
        tints = make_tints(layer, self.start["experts"], self.start["heads"])
        encoder, vectors = deepcopy(self.model.encoder), self.model.vectors
        tinted = type(self.model)(encoder, self.start["heads"], tints, layer=layer, vectors=vectors)
        unlabeled, predictions = ({t: part[i] for t, part in self.taught.items()} for i in (0, 1))
        settings = replace(self.settings, layer=layer, update="joint", steps=steps)
        adapt(tinted, unlabeled, predictions, settings, processes=self.processes, progress=False)
        shares = [self._agreement(tinted, task) for task in tinted.tasks]
        return sum(shares) / len(shares)

    def _agreement(self, tinted: TintedModel, task: str) -> float:
        unlabeled, predictions = self.aside[task]
        alone = self.processes.alone()  # the inputs are few: every process asks for all
        told = predict(OneTask(tinted, task), nn.Identity(), unlabeled, processes=alone)
        values = self.settings.objective_of(task) is l1
        return float(agreement(told, dense(predictions), of_values=values).mean())
