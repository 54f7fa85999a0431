"""One picture from whatever people hold it in: files of every mode, arrays, tensors."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessor

from fusion_tinting.families.images import Images, require_read_alike
from fusion_tinting.families.pictures import rgb
from fusion_tinting.families.rows import Rows

pytestmark = pytest.mark.quick

COLOR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]
WIDE = GRAY.astype(np.uint16) * 257
SHADES = np.stack([GRAY] * 3, -1)
OPACITY = np.full((5, 7), 255, np.uint8)
OPACITY[0] = 0


def hidden(colors: np.ndarray, where: np.ndarray) -> np.ndarray:
    """What is seen where pixels are transparent: white."""
    return np.where(where[..., None], np.uint8(255), colors)


def file(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


def palette() -> Image.Image:
    return Image.fromarray(COLOR).quantize(255)


def indices() -> np.ndarray:
    return np.asarray(palette())


PALETTE = np.asarray(palette().convert("RGB"))
CASES = {
    "16 bits": (Image.fromarray(WIDE), SHADES),
    "16 bits, PNG": (file(WIDE), SHADES),
    "16 bits, TIFF": (file(WIDE, "TIFF"), SHADES),
    "16 bits, big end first": (Image.frombytes("I;16B", (7, 5), WIDE.astype(">u2").tobytes()), SHADES),
    "16 bits with a color that is none": (
        file(WIDE, transparency=int(WIDE[2, 2])), hidden(SHADES, GRAY[2, 2] == GRAY)),
    "32 bits": (Image.fromarray(WIDE.astype(np.int32)), SHADES),
    "32 bits of bytes": (Image.fromarray(GRAY.astype(np.int32)), SHADES),
    "fractions, TIFF": (file((GRAY / 255).astype(np.float32), "TIFF"), SHADES),
    "fractions to 255": (Image.fromarray(GRAY.astype(np.float32)), SHADES),
    "1 bit": (Image.fromarray(GRAY > 127), np.where(SHADES > 127, 255, 0)),
    "gray": (file(GRAY), SHADES),
    "opacity": (file(np.dstack([COLOR, OPACITY])), hidden(COLOR, OPACITY == 0)),
    "opacity of a gray": (file(np.dstack([GRAY, OPACITY])), hidden(SHADES, OPACITY == 0)),
    "opacity, multiplied in": (
        Image.fromarray(np.dstack([COLOR, OPACITY])).convert("RGBa"), hidden(COLOR, OPACITY == 0)),
    "all opaque": (np.dstack([COLOR, np.full_like(OPACITY, 255)]), COLOR),
    "palette": (palette(), PALETTE),
    "palette with a color that is none": (
        file(palette(), transparency=int(indices()[0, 0])), hidden(PALETTE, indices() == indices()[0, 0])),
    "GIF with a color that is none": (
        file(palette(), "GIF", transparency=int(indices()[0, 0])),
        hidden(PALETTE, indices() == indices()[0, 0])),
    "the first of two frames": (
        file(palette(), "GIF", save_all=True, append_images=[palette().rotate(180)]), PALETTE),
    "RGB with a color that is none": (
        file(COLOR, transparency=tuple(map(int, COLOR[1, 1]))),
        hidden(COLOR, (COLOR[1, 1] == COLOR).all(-1))),
    "on its side, PNG": (file(COLOR, exif=turned()), np.rot90(COLOR, -1)),
    "on its side, WebP": (file(COLOR, "WEBP", lossless=True, exif=turned()), np.rot90(COLOR, -1)),
    "array": (COLOR, COLOR),
    "array, channels first": (np.moveaxis(COLOR, 2, 0), COLOR),
    "array of fractions": (COLOR / 255, COLOR),
    "array of 16 bits": (COLOR.astype(np.uint16) * 257, COLOR),
    "array of yes and no": (GRAY > 127, np.where(SHADES > 127, 255, 0)),
    "one channel": (GRAY[None], SHADES),
    "nested lists": (COLOR.tolist(), COLOR),
    "tensor": (torch.tensor(COLOR).permute(2, 0, 1), COLOR),
    "tensor, channels last": (torch.tensor(COLOR), COLOR),
    "tensor of fractions": (torch.tensor(COLOR).permute(2, 0, 1) / 255, COLOR),
    "bytes in a mapping": ({"bytes": file(COLOR), "path": None}, COLOR),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_what_a_viewer_shows(case):
    value, expected = CASES[case]
    seen = rgb(value)
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen), expected)


def test_colors_of_other_kinds_are_pils():
    for mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = Image.fromarray(COLOR).convert(mode)
        np.testing.assert_array_equal(np.asarray(rgb(image)), np.asarray(image.convert("RGB")))


def test_an_8_bit_picture_is_left_as_it_is():
    image = Image.fromarray(COLOR)
    assert rgb(image) is image


BAD = {
    "nothing": None,
    "a number": 3,
    "no file": "nowhere.png",
    "no bytes": b"",
    "neither bytes nor path": {"bytes": None, "path": None},
    "cut short": file(np.kron(COLOR, np.ones((8, 8, 1), np.uint8)), "JPEG")[:400],
    "no pixels": np.zeros((0, 3, 3)),
    "several pictures": np.zeros((4, 5, 6, 3)),
    "seven channels": np.zeros((5, 6, 7)),
    "normalized already": torch.randn(3, 4, 4),
    "no numbers": np.full((4, 4, 3), np.nan),
    "numbers of no known range": WIDE.astype(np.int32) * 1000,
    "words": [["a"]],
    "lines of unlike length": [[1, 2], [3]],
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_is_an_error_that_names_its_row(case):
    class Table(list):
        column_names = ("image",)

    rows = Rows(Table([{"image": COLOR}, {"image": BAD[case]}]), "the shelf", {"image": "image"})
    images = Images(rows, lambda image: torch.tensor(np.asarray(image)))
    assert torch.equal(images[0], torch.tensor(COLOR))
    with pytest.raises(ValueError, match="Row 1 of the shelf has no readable image in its column `image`"):
        images[1]


def test_a_picture_that_the_data_set_decodes_is_read_the_same(tmp_path):
    from datasets import Features
    from datasets import Image as Column

    cells = [
        {"bytes": file(WIDE), "path": None},
        {"bytes": file(np.dstack([COLOR, OPACITY])), "path": None},
    ]
    table = Dataset.from_dict({"image": cells}, features=Features({"image": Column()}))
    images = Images(Rows(table, "here", {"image": "image"}), lambda image: torch.tensor(np.asarray(image)))
    assert torch.equal(images[0], torch.tensor(SHADES))
    assert torch.equal(images[1], torch.tensor(hidden(COLOR, OPACITY == 0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.0, 0.0, 0.0]}, "pixels that are .* from those of the one in use"),
        ({"image_std": [1.0, 1.0, 1.0]}, "pixels that are .* from those"),
        ({"crop_size": 24}, r"pixels \(3, 24, 24\), and not \(3, 32, 32\)"),
        ({"size": {"shortest_edge": 64}}, "pixels that are .* from those"),
    ],
)
def test_an_expert_whose_own_processor_gives_other_pixels_is_refused(tmp_path, change, message):
    ours = {"size": {"shortest_edge": 32}, "crop_size": 32}
    reader = CLIPImageProcessor(**ours)
    (tmp_path / "bare").mkdir()
    reader.save_pretrained(tmp_path / "alike")
    alike = {name: str(tmp_path / name) for name in ("bare", "alike")}
    require_read_alike(reader, alike)
    CLIPImageProcessor(**{**ours, **change}).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"expert `other`, .*image processor of its own.*{message}"):
        require_read_alike(reader, {**alike, "other": str(tmp_path / "other")})
