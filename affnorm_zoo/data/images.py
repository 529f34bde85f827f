import logging
from collections.abc import Callable
from multiprocessing import Value
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from affnorm_zoo.errors import UsageError

_logger = logging.getLogger(__name__)
_DECODE_ERRORS = (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError)


class Images(Dataset):
    """Images of one of timm's readers, decoded to 8-bit RGB, with their labels.

    A file that cannot be decoded is an error that names it. While training, up to ``max_bad`` of them a process may be
    replaced by the next image instead; timm's own dataset replaces them in evaluation too, and counts that one twice.

    Args:
        reader: gives an open file and a label for an index.
        num_classes: labels lie below it.
        max_bad: replacements allowed, over all workers of a process.
    """

    def __init__(self, reader: Any, num_classes: int, max_bad: int = 0) -> None:
        self.reader = reader
        self.num_classes = num_classes
        self.max_bad = max_bad
        self.transform: Callable | None = None  # set by the pipeline, as on timm's datasets
        self._num_bad = Value("q", 0)  # shared with the workers

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        for shift in range(len(self)):
            position = (index + shift) % len(self)
            try:
                file, label = self.reader[position]
                with file:
                    image = to_rgb(Image.open(file))
                break
            except _DECODE_ERRORS as error:
                self._count_bad(position, error)
        label = int(label)
        if not 0 <= label < self.num_classes:
            raise UsageError(f"image {self.name(position)} has label {label}, outside the {self.num_classes} classes")
        return (image if self.transform is None else self.transform(image)), label

    def name(self, index: int) -> str:
        """The file behind an index."""
        return str(self.reader.filename(index))

    @property
    def num_bad(self) -> int:
        """Images that were replaced so far, over all workers of this process."""
        return self._num_bad.value

    def _count_bad(self, index: int, error: Exception) -> None:
        with self._num_bad.get_lock():
            self._num_bad.value += 1
            number = self._num_bad.value
        what = f"image {self.name(index)} cannot be decoded ({type(error).__name__}: {error})"
        if number > self.max_bad:
            raise UsageError(
                f"{what}; remove it, or allow more than {self.max_bad} replacements by data.max_bad_images"
            ) from error
        _logger.warning("%s; the next one takes its place (%d of %d allowed)", what, number, self.max_bad)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode to 8-bit RGB; of an animation, the first frame. Pillow would cut 16-bit values off at 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")
