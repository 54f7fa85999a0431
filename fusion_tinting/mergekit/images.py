"""The images of a task, from whatever its data holds, and the names of its classes."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from fusion_tinting.errors import unknown
from fusion_tinting.families.clip import content_version
from fusion_tinting.mergekit.rows import Rows
from fusion_tinting.run.unlabeled import Unlabeled

TEMPLATE = "a photo of a {}."
FUSION_BENCH = "fusion_bench:"
"""`classes: fusion_bench:sun397` stands for FusionBench's class names and templates of that task."""
FEW = 1000
"""Fewer images than these are decoded in this process: starting others takes longer."""
NO_IMAGE = (OSError, SyntaxError, TypeError, ValueError)
"""What PIL raises for a file that is not there, no image, or cut short."""


class Images(Dataset):
    """Rows as pixels (3, H, W), decoded when they are asked for.

    The column holds images, the bytes of image files, or their paths (from the folder of the data's file).

    Args:
        rows: of which `data.image` names the column.
        processor: the model's own; see transformers.

    Raises:
        ValueError: no such column, or a row whose image cannot be opened, named. All are opened, which
            reads the head of each file: what is cut short further on is found when it is decoded.
    """

    def __init__(self, rows: Rows, processor):
        from datasets import Image as Column  # here, for it takes seconds to import

        self._rows, self._processor, self._name = rows, processor, rows.data.image
        if self._name not in rows.table.column_names:
            raise unknown(f"image column of {rows.where}", self._name, rows.table.column_names)
        table = rows.table.select_columns(self._name)
        self._paths_alone = not isinstance(table.features[self._name], Column)
        if not self._paths_alone:
            table = table.cast_column(self._name, Column(decode=False))
        self._table, self._folder = table, Path(rows.data.path).parent
        for place in range(len(table)):
            self._read(place, lambda source: Image.open(source).close())

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, place: int) -> Tensor:
        image = self._read(place, lambda source: ImageOps.exif_transpose(Image.open(source)).convert("RGB"))
        return self._processor(images=image, return_tensors="pt")["pixel_values"][0]

    def unlabeled(self) -> Unlabeled:
        """All of them, with what names their content where that is more than a list of paths."""
        workers = min(4, os.cpu_count() or 1) if len(self) >= FEW else 0
        version = None if self._paths_alone else content_version(self._rows.table, self._processor)
        return Unlabeled(self, num_workers=workers, version=version)

    def _read(self, place: int, read: Callable) -> Image.Image | None:
        found = self._table[place][self._name]
        if isinstance(found, Mapping):
            found = found.get("bytes") or found.get("path")
        try:
            return read(io.BytesIO(found) if isinstance(found, bytes) else self._folder / found)
        except NO_IMAGE as error:
            raise ValueError(
                f"Row {place} of {self._rows.where} has no readable image in its column `{self._name}`: "
                f"{error}. Mend it or take it out."
            ) from error


def prompts_of(rows: Rows) -> tuple[list[str], list[Callable[[str], str]]]:
    """The class names of a task, in the order of its labels, and the templates that make prompts of them.

    Raises:
        FileNotFoundError: `classes` is no file.
        ValueError: no names, or a template without a place for one.
    """
    data, templates = rows.data, None
    if isinstance(data.classes, str) and data.classes.startswith(FUSION_BENCH):
        names, templates = _of_fusion_bench(data.classes.removeprefix(FUSION_BENCH))
    elif isinstance(data.classes, str):
        names = _of_file(Path(data.classes), rows.where)
    else:
        names = data.classes or _of_data_set(rows)
    if data.template is not None or templates is None:
        given = data.template or TEMPLATE
        texts = [given] if isinstance(given, str) else given
        templates = [_template(text, rows.where) for text in texts]
    return list(names), list(templates)


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
    column = rows.data.label or "label"
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
