"""Images as a model reads them, whatever a row holds: a picture, a file's bytes or path, an array."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, BaseImageProcessor, ProcessorMixin

from fusion_tinting.families.loading import own_file
from fusion_tinting.families.pictures import file_of, naming, rgb
from fusion_tinting.families.rows import Rows
from fusion_tinting.run.unlabeled import Unlabeled

FEW = 1000
"""Fewer images than these are decoded in this process: starting others takes longer."""
READING = "white under transparency, 16 bits scaled"
"""How pictures are read; a change changes the name of what experts predict for them."""

TOLERANCE = 0.05
"""Mean difference of pixels (about ±2) that two implementations of one processor may have."""
PROBE = Image.merge(
    "RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90)]
).resize((300, 200))
"""A picture on which processors of other sizes, crops, means or spreads differ."""


class Images(Dataset):
    """Rows as pixels (3, H, W), decoded when they are asked for.

    Args:
        rows: whose column for `image` holds what `pictures.rgb` takes.
        reader: image processor of transformers, or a function from a picture to pixels.

    Raises:
        ValueError: no such column; or, in a file of the user's, a row whose image cannot be opened, named.
            All are opened, which reads the head of each file: what is cut short further on is found when it
            is decoded.
    """

    def __init__(self, rows: Rows, reader: Any):
        self._rows, self._read = rows, pixels_of(reader)
        self._table, self._name = rows.table, rows.columns["image"]
        self.paths_alone = False
        if hasattr(rows.table, "column_names"):
            rows.column("image")
        if rows.folder is not None:
            self._open_all()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, place: int) -> Tensor:
        with naming(place, self._rows.where, self._name):
            picture = rgb(self._value(place))
        return self._read(picture)

    def _open_all(self) -> None:
        from datasets import Image as Column  # here, for it takes seconds to import

        name = self._rows.column("image")
        table = self._table.select_columns(name)
        self.paths_alone = not isinstance(table.features[name], Column)
        self._table = table if self.paths_alone else table.cast_column(name, Column(decode=False))
        for place in range(len(table)):
            with naming(place, self._rows.where, name):
                value = self._value(place)
                rgb(value) if isinstance(value, list) or value is None else Image.open(value).close()

    def _value(self, place: int) -> Any:
        """Return what a row holds; of a file of the user's, paths that begin in its folder."""
        row = self._table[place]
        value = file_of(row[self._name] if isinstance(row, Mapping) else row[0])
        return self._rows.folder / value if isinstance(value, str) and self._rows.folder else value


def inputs_of(rows: Rows, reader: Any, settings: str | None = None) -> Unlabeled:
    """Return all images of the rows as unlabeled inputs.

    Args:
        rows: see `Images`.
        reader: see `Images`.
        settings: names what a `reader` does that is no processor of transformers.

    Raises:
        ValueError: see `Images`.
    """
    images = Images(rows, reader)
    few = len(images) < FEW
    workers = rows.num_workers
    if workers is None:
        workers = 0 if few else min(4, os.cpu_count() or 1)
    version = None if images.paths_alone else content_version(rows.table, reader, settings)
    return Unlabeled(images, num_workers=workers, version=version)


def content_version(table: Any, reader: Any, settings: str | None = None) -> str | None:
    """Return what names the content of processed images: the table's fingerprint and the reader's settings.

    The fingerprint of a `datasets.Dataset` is made of the data files and of everything done to them, so
    that it survives the process. Other tables have none, and None is returned.

    Args:
        table: the rows.
        reader: processor of transformers, or another.
        settings: in the place of the processor's own.
    """
    fingerprint = getattr(table, "_fingerprint", None)
    to_json = getattr(getattr(reader, "image_processor", reader), "to_json_string", None)
    settings = to_json() if settings is None and to_json is not None else settings
    return None if fingerprint is None or settings is None else f"{fingerprint} {settings} {READING}"


def require_read_alike(reader: Any, experts: Mapping[str, str]) -> None:
    """Refuse experts whose own image processor gives other pixels, of another size, crop, mean or spread.

    Args:
        reader: what images are read with; functions are not compared.
        experts: task -> folder or hub id; what has no processor of its own says nothing.

    Raises:
        ValueError: naming the expert, and how the pixels differ.
    """
    if not isinstance(reader, (ProcessorMixin, BaseImageProcessor)):
        return
    ours = pixels_of(reader)(PROBE)
    for task, path in experts.items():
        if not any(own_file(path, name) for name in ("preprocessor_config.json", "processor_config.json")):
            continue
        theirs = pixels_of(AutoImageProcessor.from_pretrained(path))(PROBE)
        if difference := _difference(theirs, ours):
            raise ValueError(
                f"The expert `{task}`, `{path}`, has an image processor of its own, which gives "
                f"{difference}. Models that read images differently cannot be merged; if it was not "
                "fine-tuned with that processor, take its file out."
            )


def _difference(theirs: Tensor, ours: Tensor) -> str | None:
    if theirs.shape != ours.shape:
        return f"pixels {tuple(theirs.shape)}, and not {tuple(ours.shape)} as the one in use"
    apart = float((theirs - ours).abs().mean())
    return f"pixels that are {apart:.2g} from those of the one in use" if apart > TOLERANCE else None


def pixels_of(reader: Any) -> Callable[[Image.Image], Tensor]:
    """Return a function from a picture in RGB to pixels (3, H, W).

    Args:
        reader: image processor of transformers, or such a function already.
    """
    return (
        partial(_processed, reader) if isinstance(reader, (ProcessorMixin, BaseImageProcessor)) else reader
    )


def _processed(processor: Any, image: Image.Image) -> Tensor:
    return processor(images=[image], return_tensors="pt")["pixel_values"][0]
