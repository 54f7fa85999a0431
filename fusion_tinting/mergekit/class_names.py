"""The names of a task's classes, and the prompts that are made of them."""

from collections.abc import Callable
from pathlib import Path

from fusion_tinting.errors import unknown
from fusion_tinting.families.family import Classes
from fusion_tinting.families.rows import Rows
from fusion_tinting.mergekit.config import Data

TEMPLATE = "a photo of a {}."
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
    elif isinstance(data.classes, str):
        names = _of_file(Path(data.classes).expanduser(), rows.where)
    else:
        names = data.classes or _of_data_set(rows)
    if data.template is not None or templates is None:
        given = data.template or TEMPLATE
        texts = [given] if isinstance(given, str) else given
        templates = [_template(text, rows.where) for text in texts]
    return Classes(list(names), list(templates))


def _of_fusion_bench(task: str) -> tuple[list[str], list[Callable[[str], str]]]:
    from fusion_bench.tasks.clip_classification import CLIPTemplateFactory as Factory

    if task not in Factory.get_available_datasets():
        raise unknown("task of FusionBench", task, Factory.get_available_datasets())
    return Factory.get_classnames_and_templates(task)


def _of_file(path: Path, where: str) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}` with the class names of {where}.")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"`{path}`, the class names of {where}, is empty: expected one name a line.")
    return names


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


def _template(text: str, where: str) -> Callable[[str], str]:
    if not isinstance(text, str) or "{}" not in text:
        raise ValueError(
            f"A `template` of {where} must have `{{}}` where the class goes, as in `{TEMPLATE}`. "
            f"Found {text!r}."
        )
    return lambda name: text.replace("{}", name)
