"""Images with any number of classes each: a folder or tars, and a CSV of labels."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from affnorm_zoo.config import DataConfig, expand_home
from affnorm_zoo.data.index import LabelledFiles
from affnorm_zoo.data.label_file import LabelFile, Row, read_label_file
from affnorm_zoo.data.listing import Listing, list_pictures, printable
from affnorm_zoo.data.local import find_root, find_split, has_split, tell_passed
from affnorm_zoo.errors import UsageError

_SPLIT = "{split}"  # in data.labels
_MOST_NAMES = 3  # in a message


def open_labelled(config: DataConfig) -> tuple[tuple[str, ...], LabelledFiles, LabelledFiles, str]:
    """Open the images of ``data.path`` with the labels of ``data.labels``.

    A split is a folder or a tar, as for images with one class each, and a row's path lies below it. Where neither split
    has one, all images lie below ``data.path``, and the rows say whose they are.

    Returns:
        The class names, the training and the validation images, whose labels are (C,) float32 of 0 and 1, and the
        SHA-256 of paths and labels.

    Raises:
        UsageError: the CSV is not valid, rows and images do not match, or no training image shows a class.
    """
    splits = {"data.train_split": config.train_split, "data.val_split": config.val_split}
    files = _read_files(config, splits.values())
    names = _class_names(files)
    rows = [row for file in files for row in file.rows]
    _tell_unused(config, rows)
    root = find_root(config)
    apart = any(has_split(root, split) for split in splits.values())
    paths = {split: find_split(config, split, key) if apart else root for key, split in splits.items()}
    parts, digest = [], hashlib.sha256()
    listings: dict[Path, Listing] = {}
    for key, split in splits.items():
        own = [row for row in rows if row.split == split]
        if not own:
            found = ", ".join(sorted({row.split for row in rows})[:8]) or "no rows at all"
            raise UsageError(f"{key}: {config.labels} has no rows of the split {split!r}; it has {found}")
        path = paths[split]
        if path not in listings:
            listings[path] = _list(path, own if apart else rows)
        part = LabelledFiles(path, listings[path], _labels(path, listings[path], own, names))
        for name, target in zip(part.names, part.targets, strict=True):
            digest.update(f"{name}\0".encode(errors="surrogateescape") + target.tobytes())
        parts.append(part)
    _check_shown(config, names, *parts)
    return names, parts[0], parts[1], digest.hexdigest()


def _read_files(config: DataConfig, splits: Iterable[str]) -> list[LabelFile]:
    """One CSV of each split where ``{split}`` stands in its path; otherwise one for all."""
    labels = expand_home(str(config.labels))
    if _SPLIT not in labels:
        return [read_label_file(Path(labels), None)]
    return [read_label_file(Path(labels.replace(_SPLIT, split)), split) for split in dict.fromkeys(splits)]


def _class_names(files: list[LabelFile]) -> tuple[str, ...]:
    """The classes: the columns in their order, or all names that rows list, sorted."""
    first = files[0]
    for file in files[1:]:
        if file.class_names != first.class_names:
            raise UsageError(f"{file.path}:1: the columns must be those of {first.path}")
    listed = sorted({name for file in files for row in file.rows for name in row.labels})
    names = tuple(listed) if first.class_names is None else first.class_names
    if len(names) < 2:
        raise UsageError(f"{first.path} must name at least two classes, got {', '.join(names) or 'none'}")
    return names


def _tell_unused(config: DataConfig, rows: list[Row]) -> None:
    counts = Counter(row.split for row in rows if row.split not in (config.train_split, config.val_split))
    unused = ", ".join(f"{count:,} of {split!r}" for split, count in sorted(counts.items()))
    tell_passed(Path(str(config.labels)), unused and f"rows of other splits are not used: {unused}")


def _list(path: Path, rows: list[Row]) -> Listing:
    """The images below a path, each of which must have one row."""
    seen: dict[str, str] = {}
    for row in rows:
        if row.file_name in seen:
            raise UsageError(
                f"{row.where}: {row.file_name} in {path} has a row already, {seen[row.file_name]}: keep one"
            )
        seen[row.file_name] = row.where
    listing = list_pictures(path, in_classes=False)
    listing.files_passed.pop(".csv", None)  # the labels themselves may lie here
    tell_passed(path, listing.describe_passed())
    without = sorted(name for name in listing.names if name not in seen)
    if without:
        raise UsageError(
            f"{path} holds {len(without)} images without a row in data.labels, such as {printable(without[0])}: add "
            "rows, without labels for an image that shows none of the classes, or move the images away"
        )
    return listing


def _labels(path: Path, listing: Listing, rows: list[Row], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The labels of the rows' images, (C,) each."""
    there = set(listing.names)
    for row in rows:
        if row.file_name not in there:
            passed = [reason for reason, files in listing.files_passed.items() if row.file_name in files]
            why = f"{row.file_name} is not read ({passed[0]})" if passed else f"there is no image {row.file_name!r}"
            raise UsageError(
                f"{row.where}: {why} below {path}: correct the path, which begins there, or remove the row"
            )
    return {row.file_name: np.array([name in row.labels for name in names], dtype=np.float32) for row in rows}


def _check_shown(config: DataConfig, names: tuple[str, ...], train: LabelledFiles, val: LabelledFiles) -> None:
    """Raise UsageError for a class that no training image shows, or if no validation image shows any."""
    counts = train.targets.sum(0)
    missing = [name for name, count in zip(names, counts, strict=True) if not count]
    if missing:
        raise UsageError(
            f"{config.labels}: no image of the split {config.train_split!r} shows {len(missing)} of the {len(names)} "
            f"classes, such as {', '.join(missing[:_MOST_NAMES])}: add images that do, or leave the classes out"
        )
    if not val.targets.any():
        raise UsageError(f"{config.labels}: no image of the split {config.val_split!r} shows any class: add labels")
