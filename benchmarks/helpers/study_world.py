"""A pool's models, inputs, labels and scores, for `studies.py` and `ablations.py`."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from statistics import mean

from fusion_bench.dataset.image_dataset import ImageClassificationDataset
from omegaconf import OmegaConf
from torch import Tensor, nn

from fusion_tinting import Settings, TintedModel, Unlabeled, predict, tint
from fusion_tinting.method.schedule import batch_schedule
from fusion_tinting.run.experts import LoadedExperts
from fusion_tinting.run.info import RunInfo
from fusion_tinting.run.tinted_model import OneTask
from fusion_tinting.run.unlabeled import InMemory
from helpers.composed import accuracy, compose_run, labels_of, loaded
from helpers.corruptions import Corrupted


class World:
    """A CLIP pool, loaded once, and the settings of a preset.

    Args:
        pool: FusionBench's name of the model pool.
        preset: the name of a method of ours.
        split: the split that is adapted on; `test` is scored.
        work: where adaptations are kept, a folder each; those that are finished are loaded.
        *overrides: of the configuration, such as another `modelpool.zoo_seed`.
    """

    def __init__(self, pool: str, preset: str, split: str, work: Path, *overrides: str):
        config = compose_run(f"modelpool={pool}", f"method={preset}", *overrides)
        self.name, self.preset, self.split, self.work = pool, preset, split, work / pool
        method = OmegaConf.to_container(config.method, resolve=True)
        self.settings = {k: v for k, v in method.items() if k in Settings.__dataclass_fields__}
        self.family = loaded(config)
        self.tasks = self.family.tasks
        self.processor = self.family.pool.load_processor()
        self._inputs: dict[tuple, Unlabeled] = {}

    def inputs(self, split: str, task: str, corruption: str | None = None) -> Unlabeled:
        """Return a task's images, as they are or corrupted; they are read once."""
        key = split, task, corruption
        if key not in self._inputs:
            rows = self.family.dataset(task, split)
            rows = rows if corruption is None else Corrupted(rows, corruption)
            self._inputs[key] = Unlabeled(InMemory(ImageClassificationDataset(rows, self.processor)))
        return self._inputs[key]

    def forget(self, corruption: str | None) -> None:
        """Free the memory of these images."""
        self._inputs = {key: inputs for key, inputs in self._inputs.items() if key[2] != corruption}

    def adapted_on(self, corruption: str | None = None) -> dict[str, Unlabeled]:
        """Return task -> the inputs to adapt on."""
        return {task: self.inputs(self.split, task, corruption) for task in self.tasks}

    def subsets(self, counts: dict[str, int], seed: int) -> dict[str, Unlabeled]:
        """Return task -> so many of its inputs, at random; with larger counts the earlier ones stay."""
        subsets = {}
        for task, inputs in self.adapted_on().items():
            order = batch_schedule(len(inputs), len(inputs), 1, seed, f"study {task}")[0]
            subsets[task] = inputs.subset(order[: counts[task]].tolist())
        return subsets

    def tinted(self, part: str, inputs: dict[str, Unlabeled], **changes: object) -> TintedModel:
        """Return the model of an adaptation, new or kept as `part`, with changed settings."""
        info = RunInfo(split=self.split, tensor_names=self.family.tensor_names or {})
        return self.kept(part, self.family.experts, self.family.heads, inputs, info=info, **changes)

    def kept(
        self,
        part: str,
        experts: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
        inputs: dict[str, Unlabeled],
        **changes: object,
    ) -> TintedModel:
        """Return the same of any experts and heads, around this pool's pre-trained model."""
        print(part, flush=True)
        return tint(
            self.family.pretrained,
            experts=experts,
            heads=heads,
            unlabeled=inputs,
            run_dir=self.work / part,
            progress=False,
            model_class=self.family.model_class,
            **{**self.settings, **changes},
        )

    @cached_property
    def untrained(self) -> TintedModel:
        """The model that the compared merges are made from."""
        family = self.family
        return family.model_class.untrained(family.pretrained, family.experts, family.heads, layer=None)

    def reference(self, name: str, task: str) -> TintedModel:
        """Return the `pre-trained` model, `Task Arithmetic`, or of the `experts` that of a task."""
        lam = {"pre-trained": 0.0, "Task Arithmetic": self.settings["init"], "experts": task}
        return self.untrained.remerged(lam[name])

    def labels(self, task: str) -> Tensor:
        """Return the labels of a task's test images, (N,)."""
        return labels_of(self.family, task)

    def logits(self, model: TintedModel, task: str, corruption: str | None = None) -> Tensor:
        """Return the logits of a task's test images, (N, classes)."""
        return predict(OneTask(model, task), nn.Identity(), self.inputs("test", task, corruption))

    def accuracies(self, model: TintedModel | str, corruption: str | None = None) -> dict[str, float]:
        """Return task -> accuracy in percent of a tinted model, or of the reference of this name."""
        of = (lambda task: self.reference(model, task)) if isinstance(model, str) else lambda task: model
        return {task: self.accuracy(of(task), task, corruption) for task in self.tasks}

    def accuracy(self, model: TintedModel, task: str, corruption: str | None = None) -> float:
        """Return the accuracy of one task, in percent."""
        return round(100 * accuracy(self.logits(model, task, corruption), self.labels(task)), 2)

    @cached_property
    def experts(self) -> float:
        """Mean accuracy of the experts, each on its own task, in percent."""
        return mean(self.accuracies("experts").values())

    def averages(self, *names: str) -> dict[str, float]:
        """Return name of a reference -> mean accuracy in percent."""
        return {name: mean(self.accuracies(name).values()) for name in names}


class Pair:
    """Tasks of several worlds, whose experts need not share a pre-training; θ₀ is that of the first.

    Args:
        homes: task -> the world that its expert, head and images are from.
    """

    def __init__(self, homes: dict[str, World]):
        self.homes = homes
        self.base = next(iter(homes.values()))
        # Copies, for experts of a family share what was not fine-tuned with their own pre-trained model.
        self.experts = LoadedExperts(
            list(homes), lambda task: deepcopy(self.homes[task].family.experts[task])
        )
        self.heads = {task: home.family.heads[task] for task, home in homes.items()}

    @cached_property
    def untrained(self) -> TintedModel:
        """The model that merges without adaptation are made from."""
        family = self.base.family
        vectors = {"pretraining": "different"}
        return family.model_class.untrained(family.pretrained, self.experts, self.heads, None, vectors)

    def tinted(self, part: str, changes: dict) -> TintedModel:
        """Return the model of an adaptation, as `World.tinted`."""
        inputs = {task: home.inputs(home.split, task) for task, home in self.homes.items()}
        vectors = {"task_vectors": {"pretraining": "different"}}
        return self.base.kept(part, self.experts, self.heads, inputs, **vectors, **changes)

    def accuracies(self, model: Callable[[str], TintedModel]) -> dict[str, float]:
        """Return task -> accuracy in percent of its model."""
        return {task: home.accuracy(model(task), task) for task, home in self.homes.items()}
