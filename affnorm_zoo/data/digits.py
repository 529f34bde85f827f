from functools import cache

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

DIGITS_SIZE = 8
DIGITS_MEAN = (0.305,)  # of the training split, in [0, 1]
DIGITS_STD = (0.376,)
DIGITS_CLASSES = tuple(str(digit) for digit in range(10))


class Digits(Dataset):
    """Handwritten digits of 8x8 grey pixels, scans that come with scikit-learn: 1,437 for training, 360 for validation.

    Args:
        split: ``"train"`` or ``"val"``; the division is stratified and always the same.

    Source:
        Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49.
    """

    def __init__(self, split: str) -> None:
        images, labels = _split()[split]
        self.images = [Image.fromarray(image) for image in images]
        self.labels = labels.tolist()
        self.transform = None  # set by the pipeline, as on timm's datasets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.labels[index]


@cache
def _split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits  # takes a second to import, and only the digits need it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)  # scikit-learn counts ink from 0 to 16
    train_x, val_x, train_y, val_y = train_test_split(
        pixels, digits.target, test_size=360, random_state=0, stratify=digits.target
    )
    return {"train": (train_x, train_y), "val": (val_x, val_y)}
