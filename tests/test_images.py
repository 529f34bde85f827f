"""Odd images become the RGB that they show, or are refused by name."""

import io
import math

import numpy as np
import pytest
from pictures import draw_folder
from PIL import Image

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import open_source
from affnorm_zoo.data.images import to_rgb
from affnorm_zoo.errors import UsageError


def encode(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
ODD = {
    "grey": (encode(Image.fromarray(RAMP), "png"), RAMP),
    "16 bits": (encode(Image.fromarray(RAMP.astype(np.uint16) * 257), "png"), RAMP),
    "RGBA": (encode(Image.fromarray(np.dstack([RAMP] * 3 + [RAMP])), "png"), RAMP),
    "palette": (encode(Image.fromarray(RAMP).convert("P"), "png"), RAMP),
    "animation": (
        encode(Image.fromarray(RAMP), "webp", lossless=True, save_all=True,
               append_images=[Image.fromarray(255 - RAMP)]),
        RAMP,
    ),
    "bilevel": (encode(Image.fromarray(RAMP).point(lambda v: 255 * (v > 99)).convert("1"), "png"), 255 * (RAMP > 99)),
    "grey and alpha": (encode(Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]), "png"), RAMP),
    "transparent palette": (
        encode(Image.fromarray(RAMP).convert("P"), "png", transparency=bytes(range(256))),
        RAMP,
    ),
    "transparent colour": (encode(Image.fromarray(RAMP).convert("RGB"), "png", transparency=(7, 7, 7)), RAMP),
    "16 bits, big-endian": (encode(Image.fromarray(RAMP.astype(">u2") * 257), "tiff"), RAMP),
    "16 bits of PGM": (b"P5 16 16 65535\n" + (RAMP.astype(">u2") * 257).tobytes(), RAMP),
    "32-bit integers of 8 bits": (encode(Image.fromarray(RAMP.astype(np.int32)), "tiff"), RAMP),
    "32-bit integers of 8 bits, dark": (encode(Image.fromarray(RAMP.astype(np.int32) // 4), "tiff"), RAMP // 4),
    "32-bit integers of 12 bits": (encode(Image.fromarray(RAMP.astype(np.int32) * 4095 // 255), "tiff"), RAMP),
    "32-bit integers of 31 bits": (encode(Image.fromarray(RAMP.astype(np.int32) * 8421504), "tiff"), RAMP),
    "real numbers up to 1": (encode(Image.fromarray(RAMP.astype(np.float32) / 255), "tiff"), RAMP),
    "real numbers up to 255": (encode(Image.fromarray(RAMP.astype(np.float32)), "tiff"), RAMP),
    "real numbers up to 65535": (encode(Image.fromarray(RAMP.astype(np.float32) * 257), "tiff"), RAMP),
    "real numbers up to 1/4096": (encode(Image.fromarray(RAMP.astype(np.float32) / 255 / 4096), "tiff"), RAMP),
    "black real numbers": (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff"), np.zeros((4, 4), np.uint8)),
    "one pixel": (encode(Image.new("RGB", (1, 1), (9, 9, 9)), "png"), np.full((1, 1), 9, np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_become_the_rgb_they_show(kind):
    data, expected = ODD[kind]
    image = np.asarray(to_rgb(Image.open(io.BytesIO(data))))
    assert image.shape == (*expected.shape, 3)
    assert np.abs(image.astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour"),
    [
        ("CMYK", (0, 255, 255, 0)), ("YCbCr", (82, 90, 240)), ("HSV", (0, 255, 255)), ("LAB", (138, 208, 198)),
        ("RGBX", (255, 0, 0, 0)), ("RGBa", (255, 0, 0, 255)),
    ],
)  # fmt: skip
def test_red_is_red_in_every_colour_space(mode, colour):
    image = to_rgb(Image.new(mode, (4, 4), colour))
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image)[0, 0].astype(int)
    assert red > 200 > 60 > max(green, blue)
    jpeg = encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "jpeg")
    assert np.asarray(to_rgb(Image.open(io.BytesIO(jpeg))))[0, 0].argmax() == 0


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, math.nan], [0.0, math.inf]], ids=str)
def test_values_without_a_scale_are_refused_by_name(values, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    Image.fromarray(np.array([values], dtype=np.float32)).save(root / "val/blue/0.tif")
    with pytest.raises(UsageError, match=r"image blue/0.tif cannot be decoded .*32-bit values go from .* 8 bits"):
        open_source(DataConfig(path=str(root)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_pictures_are_turned_upright_as_exif_says(kind, orientation):
    upright = np.zeros((24, 48), np.uint8)
    upright[:8, :8] = 255  # a white corner at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Pillow's transposition that it undoes
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    found = np.asarray(to_rgb(Image.open(io.BytesIO(encode(stored, kind, exif=exif)))))
    assert found.shape == (24, 48, 3)
    assert np.abs(found[..., 0].astype(int) - upright).mean() < 2  # JPEG and WebP lose a little at the edges


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encode(Image.fromarray(RAMP), "png", exif=b"Exif\0\0MM\0*" + b"\xff" * 20)
    assert np.array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(data))))[..., 0], RAMP)


@pytest.mark.parametrize("content", [b"this is text", encode(Image.fromarray(RAMP), "png")[:50]])
def test_a_file_that_is_no_image_stops_an_evaluation_by_name(content, tmp_path):
    root = draw_folder(tmp_path / "pictures")
    (root / "val/red/3.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"red/3.png cannot be decoded .*remove it"):
        open_source(DataConfig(path=str(root)))
