"""One picture, whatever holds it, as every image model is given it: upright, in 8-bit RGB.

PIL's own `convert("RGB")` shows the color that is hidden under transparent pixels and makes 16-bit images
white. Here transparent pixels are white, as in a viewer, and all of a wider range is scaled to 8 bits.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

WHITE = (255, 255, 255, 255)
"""What shows through transparent pixels."""

PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
NO_PICTURE = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)
"""What PIL raises for a file that is not there, no image, cut short or endless."""

CHANNELS = (1, 2, 3, 4)
"""Gray, gray and opacity, RGB, RGB and opacity."""


def rgb(value: Any) -> Image.Image:
    """Return a picture upright in 8-bit RGB; an upright 8-bit RGB picture of PIL as it is.

    Of several frames the first counts. Numbers that are no bytes are scaled: unsigned 16-bit ones, and
    whole numbers where one is above 255, from 0...65535; fractions from 0...1, or 0...255 where one is
    above 1.

    Args:
        value: a picture of PIL; the bytes of an image file, its path, or `{bytes, path}` as `datasets` has
            them; an array, whose channels come last, or a tensor, whose channels come first, unless only
            the other end can be channels.

    Raises:
        TypeError: nothing of these.
        ValueError: no pixels, or numbers of no known range.
        OSError: a file that is not there, no image, or cut short.
    """
    image = _opened(value)
    image.load()
    if 0 in image.size:
        raise ValueError(f"it has no pixels: its size is {image.size}")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.partition(";")[0] in ("I", "F"):
        image = _in_bytes(image)
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def naming(place: int, where: str, column: str = "image") -> Iterator[None]:
    """Within the context, what makes a picture unreadable is an error that names its row.

    Args:
        place: of the row.
        where: what an error calls the data.
        column: which holds the pictures.

    Raises:
        ValueError: naming all three.
    """
    try:
        yield
    except NO_PICTURE as error:
        raise ValueError(
            f"Row {place} of {where} has no readable image in its column `{column}`: {error}. Mend it or "
            "take it out."
        ) from error


def file_of(value: Any) -> Any:
    """Return what `Image.open` reads of a value that stands for a file; any other value as it is.

    Args:
        value: see `rgb`.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    return io.BytesIO(value) if isinstance(value, (bytes, bytearray)) else value


def _opened(value: Any) -> Image.Image:
    value = file_of(value)
    if isinstance(value, (io.BytesIO, str, os.PathLike)):
        return Image.open(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return _of_array(value.float().numpy() if value.is_floating_point() else value.numpy(), first=True)
    if isinstance(value, (np.ndarray, list)):
        return _of_array(np.asarray(value), first=False)
    if not isinstance(value, Image.Image):
        raise TypeError(f"expected a picture, its file or an array, found {value!r:.80}")
    return value


def _of_array(values: np.ndarray, first: bool) -> Image.Image:
    """Return the picture of an array whose channels come `first`, or last, if they can."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"expected an array (H, W), (H, W, C) or (C, H, W), found the shape {values.shape}"
        )
    if values.ndim == 3:
        first = values.shape[0] in CHANNELS and (first or values.shape[2] not in CHANNELS)
        values = np.moveaxis(values, 0, 2) if first else values
        if values.shape[2] not in CHANNELS:
            raise ValueError(f"expected 1 to 4 channels, found an array of the shape {values.shape}")
        values = values[..., 0] if values.shape[2] == 1 else values
    return Image.fromarray(np.ascontiguousarray(in_bytes(values)))


def _in_bytes(image: Image.Image) -> Image.Image:
    """Return a picture of wider numbers (modes `I`, `I;16`, `F`) in 8 bits."""
    values, hidden = np.asarray(image), image.info.get("transparency")
    gray = Image.fromarray(in_bytes(values))
    if hidden is not None:
        gray.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return gray


def in_bytes(values: np.ndarray) -> np.ndarray:
    """Return numbers as bytes; see `rgb`.

    Args:
        values: of any shape and kind.

    Raises:
        ValueError: numbers of no known range, such as those of pixels that are normalized already.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "iu"
    wide = values.dtype.kind == "u" and values.dtype.itemsize == 2
    most = 65535 if wide or (whole and high > 255) else 255 if whole or high > 1 else 1
    if not 0 <= low <= high <= most:  # false for NaN too
        raise ValueError(
            f"its numbers are {values.dtype} from {low:g} to {high:g}; expected bytes, whole numbers up to "
            "65535, or fractions from 0 to 1 or to 255"
        )
    return np.round(values * (255 / most)).astype(np.uint8)
