"""The interface of a model family: what both hosts ask of a kind of models, written once.

A host turns its own configuration into `Models` and, for each task, `Rows`. A family does the rest: it
loads encoders and heads, turns rows into inputs, and says what their outputs mean. `families/README.md`
lists the steps of adding one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from fusion_tinting.families.rows import Rows
from fusion_tinting.method.settings import Settings
from fusion_tinting.method.task_vectors import PRETRAINED
from fusion_tinting.run.tinted_model import TintedModel
from fusion_tinting.run.unlabeled import Unlabeled

BY_ARCHITECTURE, BY_FILE = "yaml", "pytorch"
"""Commands of mergekit that can merge models: `yaml` knows architectures, and wants heads of one
shape; `pytorch` merges the tensors that all files have."""


class Classes(NamedTuple):
    """The classes of a task, for heads that are made of their names.

    Attributes:
        names: in the order of the labels.
        templates: turn a name into a prompt.
    """

    names: Sequence[str]
    templates: Sequence[Callable[[str], str]]


@dataclass(frozen=True)
class Models:
    """The models of a run, as a host's configuration names them.

    Attributes:
        base: folder or hub id of the pre-trained model.
        experts: task -> folder or hub id of its expert.
        reader: tokenizer or image processor of the host; None stands for the models' own.
        load: for hosts that load models themselves: task, or `_pretrained_` -> the model, whole; None where
            the family shall load what `base` and `experts` name.
        load_head: task -> its head, for families whose experts hold none.
        classes: task -> its classes, for families whose heads are made of them.
        config: task, or `_pretrained_` -> values that stand above those in its checkpoint's configuration.
    """

    base: str
    experts: Mapping[str, str]
    reader: Any = None
    load: Callable[[str], nn.Module | None] | None = None
    load_head: Callable[[str], nn.Module] | None = None
    classes: Mapping[str, Classes] = field(default_factory=dict)
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The experts' names."""
        return list(self.experts)

    @property
    def paths(self) -> dict[str, str]:
        """Task, or `_pretrained_` -> folder or hub id."""
        return {PRETRAINED: self.base, **self.experts}

    def opened(self, name: str) -> nn.Module | None:
        """Return the model that the host loads itself; None where it leaves that to the family."""
        return None if self.load is None else self.load(name)


class Family:
    """A kind of models. A subclass gives at least `load` and `inputs`.

    Class attributes:
        keys: what of `data` the inputs and labels are read from, beside the rows themselves: `text`,
            `text_pair`, `target`, `image`, `label`, `max_length`, `classes`, `template`.
        defaults: settings where a configuration names none.
        recipes: the command of mergekit that merges such models by a recipe (`BY_ARCHITECTURE`, `BY_FILE`),
            or None.
        model_class: of what `tint` returns.
        classes: whether a sample has one class distribution, by which a sampler can choose, and not one for
            each of its positions, or a vector.
        part: prefix of the base's tensors that are merged, where the base holds more: its experts must
            share the rest.

    Attributes:
        models: what the host names.
        pretrained: θ₀, an encoder; set by `load`, as the next three.
        experts: task -> encoder of its expert; loaded on access.
        heads: task -> head, from the encoder's output to (B, classes, ...), values (B, ...) or vectors (B,
            d).
        names: parameter of `pretrained` -> its tensor's name on disk; of a head `head.` and its name there.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    recipes: str | None = None
    model_class: ClassVar[type[TintedModel]] = TintedModel
    classes: ClassVar[bool] = True
    part: ClassVar[str | None] = None

    pretrained: nn.Module
    experts: Mapping[str, nn.Module]
    heads: Mapping[str, nn.Module]
    names: Mapping[str, str]

    def __init__(self, models: Models):
        self.models = models

    def check(self) -> None:
        """Find out whether the models fit each other, before one is loaded.

        Raises:
            ValueError: naming the model.
            FileNotFoundError: a model that cannot be reached.
        """

    def load(self) -> None:
        """Load the pre-trained model and the heads, and make the experts ready to load.

        Raises:
            ValueError: a checkpoint that lacks tensors or is of another kind, named.
            FileNotFoundError: a model that cannot be reached.
        """
        raise NotImplementedError

    def inputs(self, task: str, rows: Rows) -> Unlabeled:
        """Return the inputs of a task, one for each row unless the family says otherwise; after `load`.

        Args:
            task: whose expert the inputs are for.
            rows: of the task's data.

        Raises:
            ValueError: rows that cannot be read as inputs, named.
        """
        raise NotImplementedError

    def labels(self, task: str, rows: Rows) -> Tensor | None:
        """Return the labels of the rows, (N, ...), for reports alone; None where there are none.

        Args:
            task: whose head the labels are for.
            rows: of the task's data.

        Raises:
            ValueError: a label that the task's head does not have.
        """
        return None

    @property
    def objectives(self) -> Mapping[str, str]:
        """Task -> its objective, where its output is no class distribution and so has one of its own."""
        return {}

    @property
    def layers(self) -> Mapping[str, str]:
        """Word for `layer` -> the layer it means, where `resolve_layer` would find another."""
        return {}

    def check_layer(self, layer: str | None) -> None:
        """Refuse a layer that such models cannot have as a tint; after `load`.

        Args:
            layer: as the configuration names it.

        Raises:
            ValueError: naming the layer.
        """

    def settings(self, given: Mapping[str, Any], tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Return settings for `tint`, with this family's layers and objectives in the place of their names.

        Args:
            given: settings as configured; see `fusion_tinting.Settings`.
            tasks: those that are adapted; None stands for all.

        Raises:
            ValueError: a layer that such models cannot have as a tint, or a sampler that cannot choose.
        """
        sampler = given.get("sampler", Settings.sampler)
        if not self.classes and sampler != "all":
            raise ValueError(
                f"`sampler: {sampler}` chooses among samples that have one class each, which those of a "
                f"{type(self).__name__} have not: they take `sampler: all`."
            )
        layer = given.get("layer", Settings.layer)
        self.check_layer(layer)
        settings = {**given, "layer": self.layers.get(layer, layer)}
        if self.objectives:
            common = given.get("objective", Settings.objective)
            tasks = self.models.tasks if tasks is None else tasks
            each = {task: self.objectives.get(task, common) for task in tasks}
            settings["objective"] = common if isinstance(common, Mapping) else each
        return settings

    def write_beside(self, run_dir: Path) -> None:
        """Write what a run needs beside its artifact, such as heads that no checkpoint holds.

        Args:
            run_dir: the run's folder.
        """

    @property
    def variance_epsilon(self) -> float | None:
        """ε of the batch norms whose variances are merged as log(σ² + ε); None where there are none."""
        return None

    @property
    def head_names(self) -> Mapping[str, str]:
        """`head.` and a name in a head -> its tensor's name on disk, where `names` does not say it."""
        return {}

    @staticmethod
    def parameter_of(name: str, prefix: str) -> str:
        """Return what the encoder calls a tensor that transformers' own model calls `name`.

        Args:
            name: of a tensor outside of the head.
            prefix: the model's `base_model_prefix` and a dot.
        """
        return f"model.{name}"
