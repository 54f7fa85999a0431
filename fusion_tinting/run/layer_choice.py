"""`layer: auto`: which layer to tint, chosen without labels. The paper leaves the choice to the user.

Every layer that can be tinted is tried for a few joint iterations, and judged by how far the tinted model
agrees with the experts on inputs kept aside; the better half is tried again for twice as long, and so on.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from fusion_tinting.method.objectives import agreement
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.tints import HEAD, Layer, make_tints, resolve_layer, tintable
from fusion_tinting.run.context import Context
from fusion_tinting.run.experts import LoadedExperts, predict
from fusion_tinting.run.files import read_json, write_record
from fusion_tinting.run.identity import Identity
from fusion_tinting.run.processes import Processes
from fusion_tinting.run.surroundings import one_at_a_time
from fusion_tinting.run.tinted_model import OneTask, TintedModel
from fusion_tinting.run.top_predictions import Predictions, dense
from fusion_tinting.run.training import train
from fusion_tinting.run.unlabeled import Unlabeled, split_aside

SHARE = 1 / 3
"""What the choice may take of the iterations of the adaptation that follows: a third of its time."""
ASIDE = 256
"""Inputs of each task that layers are judged by, at most; at least one and at most a quarter of them."""

Trials = dict[str, list[float]]
"""Layer -> its agreement with the experts in each round that it took part in."""


@dataclass(frozen=True)
class _Part:
    """A task's inputs, and what its expert predicts for them."""

    unlabeled: Unlabeled
    predictions: Predictions


@one_at_a_time
def choose_layer(
    model: TintedModel,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    *,
    processes: Processes | None = None,
    progress: bool = True,
) -> tuple[str, Trials]:
    """Return the layer to tint, and layer -> its agreement with the experts in each round it took part in.

    Args:
        model: from `TintedModel.untrained` with `layer=None`; not changed.
        unlabeled: task -> its inputs.
        predictions: task -> what its expert predicts for them.
        settings: of the adaptation to come. The trials are joint, at its learning rates.
        processes: where it runs.
        progress: whether the first process shows a bar.

    Raises:
        ValueError: a task with a single input.
    """
    context = Context(processes or Processes(), progress=progress)
    trial = _Trial(model, unlabeled, predictions, settings, context.processes)
    candidates = _candidates(model)
    if len(candidates) == 1:
        return candidates[0].name, {}
    trials: Trials = {layer.name: [] for layer in candidates}
    rounds = list(_rounds(len(candidates), int(SHARE * settings.steps)))
    with tqdm(
        desc="Choosing a layer",
        total=sum(count * steps for count, steps in rounds),
        disable=not context.shows_progress,
        dynamic_ncols=True,
    ) as bar:
        for count, steps in rounds:
            candidates = candidates[:count]
            for layer in candidates:
                trials[layer.name].append(trial.agreement(layer, steps))
                bar.update(steps)
            candidates = sorted(candidates, key=lambda layer: -trials[layer.name][-1])
    return candidates[0].name, {layer: values for layer, values in trials.items() if values}


def choose_or_recall(
    model: TintedModel,
    unlabeled: Mapping[str, Unlabeled],
    predictions: Mapping[str, Predictions],
    settings: Settings,
    context: Context,
) -> tuple[str, Trials]:
    """Choose a layer as `choose_layer` does; a run that is continued keeps its choice.

    Args:
        model: as `choose_layer` takes it.
        unlabeled: as `choose_layer` takes it.
        predictions: as `choose_layer` takes it.
        settings: as `choose_layer` takes it.
        context: where it runs and writes.

    Raises:
        ValueError: a task with a single input; a choice in the folder that was another run's.
    """
    context = context.known(model, settings, unlabeled, model.info.split)
    run_dir, identity = context.run_dir, context.identity
    path = None if run_dir is None else _choice_path(run_dir)
    if run_dir is not None and path is not None and identity is not None and path.is_file():
        choice = read_json(path)
        identity.require_same(Identity.from_json(choice.get("run"), path), run_dir)
        return choice["layer"], choice["agreement"]
    layer, trials = choose_layer(
        model, unlabeled, predictions, settings, processes=context.processes, progress=context.progress
    )
    if path is not None and identity is not None and context.writes:
        write_record(path, {"layer": layer, "agreement": trials, "run": identity.to_json()})
    return layer, trials


def _choice_path(run_dir: Path) -> Path:
    return run_dir / "checkpoint" / "layer.json"


def _candidates(model: TintedModel) -> list[Layer]:
    """Return every layer that can be tinted; heads without parameters cannot."""
    bare = [head for head in model.heads if not any(True for _ in head.parameters())]
    names = [name for name in tintable(model.encoder) if name != HEAD or not bare]
    layers = (resolve_layer(model.encoder, name) for name in names)
    return [layer for layer in layers if layer is not None]


def _rounds(count: int, budget: int) -> Iterator[tuple[int, int]]:
    """Yield (candidates kept, iterations each) of every round: successive halving within the budget.

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
    """Short adaptations on most of the inputs, judged by the others."""

    def __init__(
        self,
        model: TintedModel,
        unlabeled: Mapping[str, Unlabeled],
        predictions: Mapping[str, Predictions],
        settings: Settings,
        processes: Processes,
    ):
        self.model, self.settings, self.processes = model, settings, processes
        self.teaching: dict[str, _Part] = {}
        self.aside: dict[str, _Part] = {}
        for task, inputs in unlabeled.items():
            count = min(ASIDE, len(inputs) // 4)
            rows = split_aside(task, len(inputs), count, settings.seed, "choice")
            self.teaching[task], self.aside[task] = (
                _Part(inputs.subset(part.tolist()), predictions[task][part]) for part in rows
            )
        self.heads = dict(zip(model.tasks, model.heads, strict=True))
        # From the task vectors: no checkpoint is read again.
        self.experts = LoadedExperts(model.tasks, lambda task: model.remerged(task).encoder)

    def agreement(self, layer: Layer, steps: int) -> float:
        """Return the mean agreement with the experts after so many joint iterations with this tint."""
        tints = make_tints(layer, self.experts, self.heads)
        encoder, vectors = deepcopy(self.model.encoder), self.model.vectors
        tinted = type(self.model)(encoder, self.heads, tints, layer=layer, vectors=vectors)
        unlabeled = {task: part.unlabeled for task, part in self.teaching.items()}
        predictions = {task: part.predictions for task, part in self.teaching.items()}
        settings = replace(self.settings, layer=layer.name, update="joint", steps=steps)
        train(tinted, unlabeled, predictions, settings, Context(self.processes, progress=False))
        shares = [self._agreement(tinted, task) for task in tinted.tasks]
        return sum(shares) / len(shares)

    def _agreement(self, tinted: TintedModel, task: str) -> float:
        part, reads = self.aside[task], self.settings.objective_of(task).reads
        alone = self.processes.alone()  # the inputs are few: every process asks for all
        predicted: Any = predict(OneTask(tinted, task), nn.Identity(), part.unlabeled, processes=alone)
        return float(agreement(predicted, dense(part.predictions), reads).mean())
