"""mergekit's plan of a merge, tensor by tensor: every filter, gradient and file of the recipe is resolved.

What is checked before a merge is this, so that whatever a recipe can say is checked too.
"""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mergekit.architecture import get_architecture_info
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.io.tasks import FinalizeModel, LoaderCache, SaveTensor
from mergekit.merge import _model_out_config  # as `run_merge` does before it plans
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask, TensorDictWrapper
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from fusion_tinting.mergekit.checkpoints import Checkpoint
from fusion_tinting.mergekit.run_files import coefficient_file, tint_file

Checkpoints = Mapping[ModelReference, Checkpoint]


class Merge(NamedTuple):
    """How one tensor of the output is to be out_config.

    Attributes:
        sources: model -> the tensor's name there; models without it are left out.
        shapes: model -> its shape there.
        aligned: the axis along which mergekit aligns the models' vocabularies, if it does.
        copied: whether it is the base's tensor as it is: one of integers, or one that only the base has.
        shared, own: the recipe's parameters for it, and those of each model.
    """

    name: str
    base: ModelReference
    sources: Mapping[ModelReference, str]
    shapes: Mapping[ModelReference, tuple[int, ...]]
    aligned: int | None
    copied: bool
    shared: Mapping[str, Any]
    own: Mapping[ModelReference, Mapping[str, Any]]

    @property
    def tinted(self) -> bool:
        """Whether it comes from a tint's file."""
        tint = self.shared["tint"]
        return tint is not None and self.name in tint_file(tint)

    @property
    def has_coefficients(self) -> bool:
        """Whether the file of coefficients, where there is one, has a row for it if it needs one."""
        path = self.shared["coefficients"]
        return path is None or self.copied or self.tinted or self.name in coefficient_file(path).rows

    def comparable(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape without the axis that mergekit aligns."""
        return shape if self.aligned is None else (*shape[: self.aligned], *shape[self.aligned + 1 :])


def saved(tasks: Iterable[Task]) -> list[ExecuteMergeMethodTask]:
    """Of mergekit's tasks, what makes the tensors that are to be written."""
    return [task.tensor_task for task in tasks if isinstance(task, SaveTensor)]


def names_of(tasks: Iterable[Task]) -> list[str]:
    """Return the names of the tensors that mergekit's tasks write."""
    return [task.tensor_name for task in tasks if isinstance(task, SaveTensor)]


def restricted(tasks: Iterable[Task], names: Container[str]) -> list[Task]:
    """Return mergekit's tasks without those that write other tensors.

    Args:
        tasks: ending with the one that finishes the model.
        names: of the tensors that are to be written.
    """
    *saving, last = tasks
    saving = [task for task in saving if task.tensor_name in names]
    return [*saving, FinalizeModel(tensor_save_tasks=tuple(saving), writer_task=last.writer_task)]


def planned(config: MergeConfiguration, options: MergeOptions, out: Path) -> list[ExecuteMergeMethodTask]:
    """Return what mergekit will do, tensor by tensor; nothing is done yet."""
    LoaderCache().setup(options)
    architecture = get_architecture_info(config, options)
    out_config = _model_out_config(config, architecture, options.trust_remote_code)
    planner = MergePlanner(config.model_copy(deep=True), architecture, options, out_config)
    return saved(planner.plan_to_disk(str(out)))


def merges_of(
    tasks: Iterable[ExecuteMergeMethodTask], checkpoints: Checkpoints, partial: bool = False
) -> list[Merge]:
    """Return mergekit's plan with what the models' files say of the tensors.

    Args:
        tasks: of mergekit.
        checkpoints: of the recipe's models.
        partial: whether an expert may lack tensors.
    """
    headers = {model: checkpoint.headers() for model, checkpoint in checkpoints.items()}
    merges = []
    for task in tasks:
        sources = {m: name for m, names in _names(task).items() for name in names if name in headers[m]}
        base, weight = task.base_model, task.output_weight
        shapes = {m: headers[m][name].shape for m, name in sources.items()}
        aligned = weight.vocabulary_axis if hasattr(task.gather_tensors, "gather_tensors") else None
        copied = not any(headers[m][name].floating for m, name in sources.items())
        copied |= weight.optional and list(sources) == [base]
        own = {m: values for m, values in task.input_parameters.items() if m in sources or not partial}
        merges.append(Merge(weight.name, base, sources, shapes, aligned, copied, task.parameters, own))
    return merges


def _names(task: ExecuteMergeMethodTask) -> dict[ModelReference, tuple[str, ...]]:
    """Return the names by which a tensor is looked for in each model, the last choice first."""
    gather = getattr(task.gather_tensors, "gather_tensors", task.gather_tensors)
    if isinstance(gather, TensorDictWrapper):
        return {model: (load.tensor_name,) for model, load in gather.tensors.items()}
    weights = gather.weight_info.items()
    return {m: (*(w.tied_names or ()), *(w.aliases or ()), w.name) for m, w in weights}
