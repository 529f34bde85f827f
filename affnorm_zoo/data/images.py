import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from affnorm_zoo.data.bad_images import BadImages
from affnorm_zoo.data.listing import printable
from affnorm_zoo.errors import UsageError

_logger = logging.getLogger(__name__)
_SIXTEEN_BITS = {"PNG", "PPM"}  # formats whose grey values reach 65535 where Pillow gives them as 32-bit integers


class Images(Dataset):
    """Images of a reader, decoded to upright 8-bit RGB, with their labels.

    A file that cannot be decoded is an error that names it. In training, the next image may replace up to ``max_bad``
    different ones. timm's own dataset also replaces them in evaluation, where the next image then counts twice.

    Args:
        reader: gives an open file and a label for an index: a number, or one value per class, (C,).
        num_classes: labels lie below it.
        max_bad: training images that may be replaced, as :class:`BadImages` counts them; None while evaluating.
    """

    def __init__(self, reader: Any, num_classes: int, max_bad: int | None = None) -> None:
        self.reader = reader
        self.num_classes = num_classes
        self.max_bad = max_bad
        self.bad = BadImages(len(reader), self.name)
        self.transform: Callable | None = None  # set by the pipeline, as on timm's datasets

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        for shift in range(len(self)):
            position = (index + shift) % len(self)
            try:
                file, label = self.reader[position]
                with file:
                    image = to_rgb(Image.open(file))
                break
            except Exception as error:  # Pillow's plugins raise errors of any type for a damaged file
                self._note_bad(position, error)
        else:
            raise UsageError(f"none of the {len(self)} images can be decoded")
        if np.ndim(label) == 0:  # one class, which a reader may have from anywhere
            label = int(label)
            if not 0 <= label < self.num_classes:
                raise UsageError(
                    f"image {self.name(position)} has label {label}, outside the {self.num_classes} classes"
                )
        return (image if self.transform is None else self.transform(image)), label

    def name(self, index: int) -> str:
        """The file behind an index, or its number where it has no name."""
        return printable(str(self.reader.filename(index) or f"number {index}"))

    def _note_bad(self, index: int, error: Exception) -> None:
        is_new = self.bad.add(index)
        what = f"image {self.name(index)} cannot be decoded ({type(error).__name__}: {error})"
        if self.max_bad is None:
            raise UsageError(f"{what}; remove it: held-out images are not replaced") from error
        number = len(self.bad) if is_new else 0
        if number > self.max_bad or not self.max_bad:
            raise UsageError(
                f"{what}; remove it, or allow more than {self.max_bad} replacements by data.max_bad_images"
            ) from error
        if is_new:
            _logger.warning("%s; the next one takes its place (%d of %d allowed)", what, number, self.max_bad)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode to 8-bit RGB, upright as EXIF says; of an animation, the first frame. Transparency is dropped.

    Pillow would clip values of more than 8 bits at 255. 16-bit ones are divided by 257. 32-bit ones have no agreed
    range: see :func:`_to_grey`.

    Raises:
        ValueError: 32-bit values are negative or non-finite.
    """
    image.load()  # decodes the picture
    with suppress(Exception):  # a damaged EXIF block is no reason to refuse the picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    elif image.mode in ("I", "F"):
        image = _to_grey(image)
    elif image.mode in ("P", "PA", "La", "RGBa"):  # which lose their colours or warn without this step
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """Scale 32-bit values so that white is the power of two at or above the largest one, less 1 from 8 bits on.

    So white is 1 for real numbers up to 1, and 255, 4095, 65535, ... for values of 8, 12, 16, ... bits. Whole numbers
    above 1 count as 8 bits or more, so that a dark picture stays dark.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0:
        raise ValueError(f"its 32-bit values go from {low:g} to {high:g}: convert it to 8 bits")
    if high <= 1 or (image.mode == "F" and high <= 128):
        white = 2.0 ** math.ceil(math.log2(high)) if high else 1.0
    else:
        white = max(2.0 ** math.ceil(math.log2(high + 1)), 256.0) - 1
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
