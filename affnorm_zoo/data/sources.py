"""From a path to checked datasets. Faults of the data are reported before a model is built."""

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from timm.data.readers import create_reader

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.bad_images import BadImages
from affnorm_zoo.data.digits import DIGITS_CLASSES, DIGITS_MEAN, DIGITS_SIZE, DIGITS_STD, Digits
from affnorm_zoo.data.images import Images
from affnorm_zoo.data.index import Index, open_index
from affnorm_zoo.data.labelled import open_labelled
from affnorm_zoo.data.local import find_split, tell_passed
from affnorm_zoo.data.packed import PackedImages, open_packed
from affnorm_zoo.data.part import Part, divide
from affnorm_zoo.data.streams import Stream, open_wds
from affnorm_zoo.errors import UsageError

_NUM_PROBES = 64  # images per split that are decoded before anything else


@dataclass(frozen=True, kw_only=True)
class Source:
    """A training and a validation set with the same classes, not transformed yet.

    ``image_size``, ``mean``, ``std`` and ``crop_pct`` are None if the data do not set them. ``in_chans`` is
    the number of channels of the images. ``bad`` counts the training images that could not be decoded.
    """

    name: str
    train: Any
    val: Any
    class_names: tuple[str, ...]
    in_chans: int = 3
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    bad: BadImages | None = None
    has_names: bool = True  # whether the class names come from the data
    labels_sha256: str | None = None  # of the labels in a CSV

    @property
    def is_stream(self) -> bool:
        """Whether the images come in the stream's order and have no indices."""
        return isinstance(self.train, Stream)

    @property
    def num_train(self) -> int:
        """Training images."""
        return self.train.num_images if self.is_stream else len(self.train)

    @property
    def num_val(self) -> int:
        """Validation images."""
        return self.val.num_images if self.is_stream else len(self.val)

    def describe(self) -> dict[str, Any]:
        """What must stay the same when a run is resumed, even if the data were moved."""
        facts = {"num_train": self.num_train, "num_val": self.num_val, "class_names": list(self.class_names)}
        return facts if self.labels_sha256 is None else {**facts, "labels_sha256": self.labels_sha256}


def open_source(config: DataConfig) -> Source:
    """Open the data that ``config`` names; scikit-learn's digits if it names none.

    ``data.path`` is a folder with one subfolder or one tar file per split, whose own subfolders name the classes, or
    ``hfds/NAME``, a dataset of the Hugging Face Hub or the path of one, with columns ``image`` and ``label``, or
    ``wds/FOLDER``, WebDataset shards, or ``FILE.safetensors``, a packed file.
    With ``data.task=multilabel`` the labels of a folder or tar are those of the CSV ``data.labels``.
    With ``data.hold_out`` that many training images are the validation set.

    Raises:
        UsageError: the data or a split is missing, a split has no images or fewer than two classes, the classes of
            the two splits or their number in the config differ, a label lies outside the classes, or an image of a
            sample cannot be decoded; or the CSV is not valid or does not fit the images.
    """
    if config.kind == "digits":
        _check_num_classes(config, "digits", len(DIGITS_CLASSES))
        for name in ("train_split", "val_split"):
            if getattr(config, name) != getattr(DataConfig, name):
                raise UsageError(f"data.{name}={getattr(config, name)} needs data.path, which is not set")
        train, val = _hold_out(config, Digits("train"), Digits("val"), Digits("train"))
        return Source(
            name="digits",
            train=train,
            val=val,
            class_names=DIGITS_CLASSES,
            in_chans=1,
            image_size=DIGITS_SIZE,
            mean=DIGITS_MEAN,
            std=DIGITS_STD,
            crop_pct=1.0,
        )
    if config.kind == "packed":
        return _open_packed(config)
    if config.kind == "wds":
        if config.hold_out:
            raise UsageError("data.hold_out needs an indexable dataset; a WebDataset stream is not")
        train = open_wds(config, config.train_split, "data.train_split", is_training=True)
        return Source(
            name=config.name,
            train=train,
            val=open_wds(config, config.val_split, "data.val_split", is_training=False),
            class_names=tuple(map(str, range(train.num_classes))),
            has_names=False,
        )
    names, train, val, digest = open_labelled(config) if config.task == "multilabel" else _open_splits(config)
    _check_num_classes(config, config.path, len(names))
    parts = Images(train, len(names), config.max_bad_images), Images(val, len(names)), Images(train, len(names))
    bad = parts[0].bad
    train, val = _hold_out(config, *parts)
    _probe(val)
    return Source(name=config.name, train=train, val=val, class_names=names, bad=bad, labels_sha256=digest)


def _open_splits(config: DataConfig) -> tuple[tuple[str, ...], Any, Any, None]:
    """Class names, training and validation reader of images with one class each."""
    open_split = _open_hfds if config.kind == "hfds" else _open_local
    train = open_split(config, config.train_split, "data.train_split")
    val = open_split(config, config.val_split, "data.val_split")
    names = _class_names(train)
    _check_same_classes(config, names, _class_names(val))
    splits = {config.train_split: train, config.val_split: val}
    for split, reader in splits.items():
        _check_labels(f"{config.path}, split {split!r}", reader, names)
    return names, train, val, None


def _open_packed(config: DataConfig) -> Source:
    info, train, val = open_packed(config)
    train, val = _hold_out(config, train, val, PackedImages(train.images, train.labels))
    return Source(
        name=info.name,
        train=train,
        val=val,
        class_names=tuple(info.class_names),
        in_chans=info.in_chans,
        image_size=info.image_size,
        mean=tuple(info.mean) if info.mean else None,
        std=tuple(info.std) if info.std else None,
        crop_pct=info.crop_pct,
    )


def _hold_out(config: DataConfig, train: Any, val: Any, train_again: Any) -> tuple[Any, Any]:
    """The training and validation datasets; ``train_again`` has its own transform."""
    count = len(train)
    if not config.hold_out:
        return train, val
    if config.hold_out >= count:
        raise UsageError(f"data.hold_out={config.hold_out} leaves nothing of {count} images to train on")
    kept, held_out = divide(count, config.hold_out)
    return Part(train, kept), Part(train_again, held_out)


def _open_local(config: DataConfig, split: str, key: str) -> Index:
    """The pictures of a folder of class folders, or of a tar of them; skipped files are reported once."""
    path = find_split(config, split, key)
    index, passed = open_index(path)
    tell_passed(path, passed)
    return index


def _open_hfds(config: DataConfig, split: str, key: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"data.path={config.path} needs: pip install 'affnorm-zoo[hfds]'") from error
    try:
        return create_reader(f"hfds/{config.local_path}", split=split)
    except (ValueError, OSError, LookupError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{key}={split}: {config.path} cannot be read: {' '.join(str(error).split())[:400]}"
        ) from error


def _class_names(reader: Any) -> tuple[str, ...]:
    if isinstance(reader, Index):
        return reader.class_names
    indices = reader.class_to_idx
    return tuple(unicodedata.normalize("NFC", str(name)) for name in sorted(indices, key=indices.get))


def _check_same_classes(config: DataConfig, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    if len(train) < 2:
        raise UsageError(f"{config.path} must have at least two classes, named by its folders or features; got {train}")
    if train != val:
        only_train, only_val = sorted(set(train) - set(val))[:3], sorted(set(val) - set(train))[:3]
        raise UsageError(
            f"the classes of {config.path}/{config.train_split} ({len(train)}) and {config.val_split} "
            f"({len(val)}) differ: only in the first {only_train}, only in the second {only_val}"
        )


def _check_num_classes(config: DataConfig, where: str | None, found: int) -> None:
    if config.num_classes not in (None, found):
        raise UsageError(f"data.num_classes={config.num_classes}, but {where} has {found} classes")


def _check_labels(where: str, reader: Any, names: tuple[str, ...]) -> None:
    given = reader.targets if isinstance(reader, Index) else list(reader.dataset[reader.label_key])
    try:
        labels = np.asarray(given, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: every image must have a whole number as its label: {error}") from error
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        first = int(outside[0])
        raise UsageError(
            f"{where}: {len(outside)} images have a label outside the {len(names)} classes, such as "
            f"{reader.filename(first) or first} with {labels[first]}"
        )
    counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        raise UsageError(f"{where} has no images of {len(empty)} classes, such as {', '.join(empty[:3])}")


def _probe(images: Any) -> None:
    """Decode a few validation images. A bad one stops the run before it begins, as all of them must be decodable."""
    for index in np.linspace(0, len(images) - 1, num=min(_NUM_PROBES, len(images)), dtype=int):
        images[int(index)]
