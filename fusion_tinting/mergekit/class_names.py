"""The names of a task's classes, and the prompts that are made of them."""

from collections.abc import Callable

from fusion_tinting.errors import unknown
from fusion_tinting.families.class_names import prompt_makers, read_names
from fusion_tinting.families.family import Classes
from fusion_tinting.families.rows import Rows
from fusion_tinting.mergekit.config import Data

FUSION_BENCH = "fusion_bench:"
"""`classes: fusion_bench:sun397` stands for FusionBench's class names and templates of that task."""


def classes_of(data: Data, rows: Rows) -> Classes:
    """Return the class names of a task, in the order of its labels, and the templates of its prompts.

    Args:
        data: what the configuration says of them.
        rows: of the data, which may know its classes.

    Raises:
        FileNotFoundError: `classes` is no file.
        ValueError: no names, or a template without a place for one.
    """
    templates = None
    if isinstance(data.classes, str) and data.classes.startswith(FUSION_BENCH):
        names, templates = _of_fusion_bench(data.classes.removeprefix(FUSION_BENCH))
    else:
        names = read_names(data.classes, rows.where) if data.classes else _of_data_set(rows)
    if data.template is not None or templates is None:
        templates = prompt_makers(data.template, rows.where)
    return Classes(list(names), list(templates))


def _of_fusion_bench(task: str) -> tuple[list[str], list[Callable[[str], str]]]:
    from fusion_bench.tasks.clip_classification import CLIPTemplateFactory as Factory

    if task not in Factory.get_available_datasets():
        raise unknown("task of FusionBench", task, Factory.get_available_datasets())
    return Factory.get_classnames_and_templates(task)


def _of_data_set(rows: Rows) -> list[str]:
    column = rows.columns.get("label", "label")
    names = getattr(rows.table.features.get(column), "names", None)
    if not names:
        raise ValueError(
            f"The data {rows.where} does not say what its classes are called: its column `{column}` holds "
            "no class labels. Give `classes`: a list of names in the order of the labels, or a text file "
            "with one a line."
        )
    return names
