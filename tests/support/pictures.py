"""Folders and tars of small generated images."""

import tarfile
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


def picture(path, value=0, size=(8, 8), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".jfif": "JPEG", ".heic": "PNG"}
    Image.new("RGB", size, (value, 9, 9)).save(path, formats.get(path.suffix), **kwargs)
    return path


def splits(root, *names):
    """Two splits with two classes of one picture each, and a further file for every name below the split."""
    for split in ("train", "val"):
        for name in ("cat/0.png", "dog/0.png", *names):
            picture(root / split / name)
    return root


def pack(root, prefix=""):
    """The splits of a folder as tars, in another folder."""
    packed = root.with_name(root.name + "_packed")
    packed.mkdir()
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=f"{prefix}{split}" if prefix else ".")
    return packed


def content(index):
    """The files of a split with their labels and bytes."""
    found = []
    for number in range(len(index)):
        file, label = index[number]
        with file:
            found.append((index.filename(number), label, file.read()))
    return found


def draw_labelled(root, train=48, val=16, size=16):
    """Pictures below one folder with any number of colours each, and ``labels.csv``: one column per colour."""
    rng = np.random.default_rng(0)
    lines = ["file_name,split," + ",".join(CLASSES)]
    for number in range(train + val):
        shown = rng.integers(0, 2, 3) if number % 8 else np.array([1, 0, 1])
        pixels = rng.integers(0, 100, (size, size, 3)) + 150 * shown[::-1]
        path = root / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        split = "train" if number < train else "val"
        lines.append(f"images/{number}.png,{split}," + ",".join(map(str, shown)))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def labelled(root):
    """The overrides that name such data."""
    return f"data.path={root}", "data.task=multilabel", f"data.labels={root / 'labels.csv'}", "data.image_size=16"
