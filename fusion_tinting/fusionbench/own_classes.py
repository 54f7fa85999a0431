"""Class names and prompts of tasks that FusionBench does not know, in the YAML of a pool."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_bench.tasks.clip_classification import CLIPTemplateFactory

from fusion_tinting.errors import require_mappings
from fusion_tinting.families.class_names import prompt_makers, read_names
from fusion_tinting.families.labels import Outputs

Given = Mapping[str, Sequence[str] | str]
_TABLE = CLIPTemplateFactory._dataset_mapping
_OWN: set[str] = set()
"""Tasks that were named here."""


class OwnClasses:
    """Stands before a pool of FusionBench among the bases of a class.

    Args:
        class_names: task -> its classes, in the order of the labels: a list, or a text file of lines.
        templates: task -> a prompt with `{}` for the class, or several (default: `a photo of a {}.`).
        *args, **kwargs: as the stock class.

    Raises:
        ValueError: names or prompts that are none, or of a task that FusionBench knows.
        FileNotFoundError: no such file.
    """

    def __init__(
        self, *args: Any, class_names: Given | None = None, templates: Given | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        name_classes(class_names or {}, templates or {})


def name_classes(class_names: Given, templates: Given) -> None:
    """Add tasks to FusionBench's table, which all its pools and methods read.

    Args:
        class_names: see `OwnClasses`.
        templates: see `OwnClasses`.

    Raises:
        ValueError: see `OwnClasses`.
        FileNotFoundError: no such file.
    """
    require_mappings(class_names=class_names, templates=templates)
    if nameless := [task for task in templates if task not in class_names]:
        raise ValueError(f"`templates` has the tasks {nameless}, which `class_names` lacks.")
    for task, given in class_names.items():
        if task in _TABLE and task not in _OWN:
            raise ValueError(
                f"FusionBench knows the classes of `{task}` already. Give the task another name in the "
                "pools, or drop its `class_names`."
            )
        where = f"the task `{task}`"
        names, prompts = read_names(given, where), prompt_makers(templates.get(task), where)
        # Straight into the table: FusionBench 0.2.33's `register_dataset` stores no templates.
        _TABLE[task] = {"classnames": names, "templates": prompts}
        _OWN.add(task)


def require_own_order(dataset: Any, task: str) -> None:
    """Refuse class names of an own task that its test set has in another order.

    Args:
        dataset: the test set, which may name its classes.
        task: whose it is.

    Raises:
        ValueError: naming both orders.
    """
    told = getattr((getattr(dataset, "features", None) or {}).get("label"), "names", None)
    if task not in _OWN or not told:
        return
    names = _TABLE[task]["classnames"]
    order = Outputs(len(names), {name: place for place, name in enumerate(names)}).order(told)
    if order is not None and order != list(range(len(told))):
        raise ValueError(
            f"`class_names` of the task `{task}` must be in the order of the labels: its test set calls "
            f"them {told}. Found {names}."
        )
