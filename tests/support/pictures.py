"""Folders of small generated images, one colour a class."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def draw_folder(root: Path, splits=("train", "val"), classes=CLASSES, per_class=8, size=16) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
                pixels[..., number % 3] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
