import io
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from affnorm_zoo.data.listing import Listing, Span, list_pictures
from affnorm_zoo.errors import UsageError


class LabelledFiles:
    """Pictures of a folder or tar with their labels, in timm's natural order of their paths.

    No file stays open, so that workers may be forked or spawned.

    Args:
        path: the folder or tar.
        listing: its content.
        labels: of the pictures, by their paths below it; those of the listing that it lacks are left out.
    """

    def __init__(self, path: Path, listing: Listing, labels: Mapping[str, Any]) -> None:
        self.path = path
        chosen = [number for number, name in enumerate(listing.names) if name in labels]
        chosen.sort(key=lambda number: _natural_key(listing.names[number]))
        self.names = [listing.names[number] for number in chosen]
        self.spans: list[Span] = [listing.spans[number] for number in chosen] if listing.spans else []
        self.targets = np.array([labels[name] for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[BinaryIO, Any]:
        """An open file and its label."""
        label = self.targets[index]
        if not self.spans:
            return (self.path / self.names[index]).open("rb"), label
        start, size = self.spans[index]
        with self.path.open("rb") as tar:
            tar.seek(start)
            return io.BytesIO(tar.read(size)), label

    def filename(self, index: int) -> str:
        """The path of a picture below its split."""
        return self.names[index]


class Index(LabelledFiles):
    """The pictures of a split, labelled by the first folder below it: a folder, or a tar with the same content.

    Classes are in the order of their names, in Unicode's composed form.

    Args:
        path: the folder or tar.
        listing: its content.

    Raises:
        UsageError: it holds no pictures, fewer than two classes, or a class whose name is not Unicode.
    """

    def __init__(self, path: Path, listing: Listing) -> None:
        by_folder = {folder: unicodedata.normalize("NFC", folder) for folder in listing.folders}
        self.class_names = tuple(sorted(set(by_folder.values())))
        if len(self.class_names) < 2:
            found = list(self.class_names) or "none"
            raise UsageError(f"{path} must hold one folder per class, at least two; it has {found}")
        if not listing.names:
            raise UsageError(f"{path} holds no images: {listing.describe_passed() or 'its folders are empty'}")
        for name in self.class_names:
            _check_unicode(path, name)
        number_of = {folder: self.class_names.index(name) for folder, name in by_folder.items()}
        super().__init__(path, listing, {name: number_of[name.partition("/")[0]] for name in listing.names})


def open_index(path: Path) -> tuple[Index, str]:
    """Find the pictures of a split.

    Args:
        path: a folder, or the tar of one.

    Returns:
        The index, and one line on what was passed over; empty if nothing was.

    Raises:
        UsageError: as :class:`Index`, or the folder or tar cannot be read.
    """
    listing = list_pictures(path)
    return Index(path, listing), listing.describe_passed()


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """timm's order: 2 comes before 10, and the case of letters only decides between otherwise equal names."""
    parts: list[str | int] = list(re.split(r"(\d+)", name.lower()))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _check_unicode(path: Path, name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: the class folder {name!r} has a name that is not UTF-8: rename it") from error
