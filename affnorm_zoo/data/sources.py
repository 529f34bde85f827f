"""From a path to checked datasets: what is wrong with it is said before a model is built."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageDataset
from timm.data.readers import create_reader

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.digits import DIGITS_CLASSES, DIGITS_MEAN, DIGITS_SIZE, DIGITS_STD, Digits
from affnorm_zoo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A training and a validation set with the same classes, not transformed yet.

    ``image_size``, ``mean`` and ``std`` are None where the data leave them to the model. ``in_chans`` is the number
    of channels of the stored images.
    """

    name: str
    train: Any
    val: Any
    class_names: tuple[str, ...]
    in_chans: int = 3
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def open_source(config: DataConfig) -> Source:
    """Open the data that ``config`` names; the embedded digits if it names none.

    Raises:
        UsageError: the folder or a split is missing, a split has no images or fewer than two classes, or the
            classes of the two splits differ.
    """
    if config.path is None:
        return Source(
            name="digits",
            train=Digits("train"),
            val=Digits("val"),
            class_names=DIGITS_CLASSES,
            in_chans=1,
            image_size=DIGITS_SIZE,
            mean=DIGITS_MEAN,
            std=DIGITS_STD,
        )
    root = Path(config.path)
    train_classes = _classes(root, config.train_split, "data.train_split")
    val_classes = _classes(root, config.val_split, "data.val_split")
    if train_classes != val_classes:
        only_train = sorted(set(train_classes) - set(val_classes))[:3]
        only_val = sorted(set(val_classes) - set(train_classes))[:3]
        raise UsageError(
            f"the classes of {root}/{config.train_split} ({len(train_classes)}) and {config.val_split} "
            f"({len(val_classes)}) differ: only in the first {only_train}, only in the second {only_val}"
        )
    class_map = {name: index for index, name in enumerate(train_classes)}
    return Source(
        name=root.name,
        train=_open_split(root / config.train_split, class_map),
        val=_open_split(root / config.val_split, class_map),
        class_names=tuple(train_classes),
    )


def _classes(root: Path, split: str, key: str) -> list[str]:
    if not root.is_dir():
        existing = next(parent for parent in [*root.absolute().parents] if parent.is_dir())
        raise UsageError(f"data.path: {root} is not a folder; the nearest one that exists is {existing}")
    folder = root / split
    if not folder.is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise UsageError(f"{key}: {root} has no folder {split!r}; it has {', '.join(found[:8]) or 'no folders at all'}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise UsageError(f"{folder} must hold one folder a class, at least two; it has {classes or 'none'}")
    return classes


def _open_split(folder: Path, class_map: dict[str, int]) -> ImageDataset:
    try:
        reader = create_reader("", root=str(folder), class_map=class_map)
    except RuntimeError as error:  # timm's word for a folder without images
        raise UsageError(f"{folder} holds no images: {error}") from error
    counts = [0] * len(class_map)
    for _, label in reader.samples:
        counts[label] += 1
    empty = [name for name, index in class_map.items() if counts[index] == 0]
    if empty:
        raise UsageError(f"{folder} has no images of {len(empty)} classes, such as {', '.join(empty[:3])}")
    return ImageDataset(str(folder), reader=reader)
