"""A CSV of labels: the classes that each image shows."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from affnorm_zoo.errors import UsageError

FILE_COLUMN, SPLIT_COLUMN, LABELS_COLUMN = "file_name", "split", "labels"
SEPARATOR = "|"  # of the classes in the column of labels
_MOST_NAMES = 5  # in a message


@dataclass(frozen=True)
class Row:
    """One image: its path, its split, the classes that it shows, and the place in the CSV, for messages."""

    where: str
    file_name: str
    split: str
    labels: frozenset[str]


@dataclass(frozen=True)
class LabelFile:
    """The rows of a CSV. ``class_names`` are its columns, in their order; None if a column lists the classes."""

    path: Path
    rows: list[Row]
    class_names: tuple[str, ...] | None


def read_label_file(path: Path, split: str | None) -> LabelFile:
    """Read a CSV of labels.

    It has a header and the column ``file_name``, then either one column of 0 and 1 for each class, or the column
    ``labels`` with names between ``|``, which is empty for an image that shows none of the classes.

    Args:
        path: of the file, in UTF-8.
        split: of all rows; None: the column ``split`` names it.

    Raises:
        UsageError: the file is missing or no CSV, or a column or a value is not as above; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            classes = _read_header(path, header, split)
            rows = list(_read_rows(path, lines, header, classes, split))
    except OSError as error:
        raise UsageError(f"data.labels: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"data.labels: {path} must be UTF-8: {error}") from error
    except (csv.Error, ValueError) as error:  # a path with a zero byte is a ValueError
        raise UsageError(f"data.labels: {path} is not a CSV: {error}") from error
    return LabelFile(path, rows, classes)


def _read_header(path: Path, header: list[str], split: str | None) -> tuple[str, ...] | None:
    """The columns that are classes; None if a column lists the classes."""
    where = f"{path}:1"
    if FILE_COLUMN not in header:
        found = ", ".join(header[:_MOST_NAMES]) or "nothing"
        raise UsageError(
            f"{where}: there must be a column {FILE_COLUMN}, the path of the image; the header has {found}"
        )
    if split is None and SPLIT_COLUMN not in header:
        raise UsageError(
            f"{where}: there must be a column {SPLIT_COLUMN}; or give each split a CSV, with {{split}} in data.labels"
        )
    if split is not None and SPLIT_COLUMN in header:
        raise UsageError(
            f"{where}: remove the column {SPLIT_COLUMN}, as {{split}} in data.labels says whose rows these are"
        )
    names = [unicodedata.normalize("NFC", name) for name in header]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or "" in names:
        raise UsageError(f"{where}: each column must have a name of its own, got {', '.join(map(repr, twice or ['']))}")
    classes = tuple(name for name in names if name not in (FILE_COLUMN, SPLIT_COLUMN, LABELS_COLUMN))
    if LABELS_COLUMN not in header:
        return classes
    if classes:
        raise UsageError(
            f"{where}: keep either the column {LABELS_COLUMN} or one column per class, got also "
            f"{', '.join(classes[:_MOST_NAMES])}"
        )
    return None


def _read_rows(
    path: Path, lines: Iterator[list[str]], header: list[str], classes: tuple[str, ...] | None, split: str | None
) -> Iterator[Row]:
    names = [unicodedata.normalize("NFC", name) for name in header]
    for cells in lines:
        if not cells:
            continue
        where = f"{path}:{lines.line_num}"  # type: ignore[attr-defined]  # typed as any iterator
        if len(cells) != len(names):
            raise UsageError(f"{where}: there must be {len(names)} values, as in the header, got {len(cells)}")
        row = dict(zip(names, cells, strict=True))
        labels = _names_in(where, row[LABELS_COLUMN]) if classes is None else _columns_of(where, row, classes)
        yield Row(where, row[FILE_COLUMN], row[SPLIT_COLUMN] if split is None else split, labels)


def _names_in(where: str, cell: str) -> frozenset[str]:
    """The classes that a cell lists."""
    names = [unicodedata.normalize("NFC", name.strip()) for name in cell.split(SEPARATOR)] if cell.strip() else []
    if "" in names or len({*names}) != len(names):
        raise UsageError(f"{where}: {LABELS_COLUMN} must be names between {SEPARATOR!r}, each once, got {cell!r}")
    return frozenset(names)


def _columns_of(where: str, row: dict[str, str], classes: tuple[str, ...]) -> frozenset[str]:
    """The classes whose column is 1."""
    for name in classes:
        if row[name].strip() not in ("0", "1"):
            raise UsageError(f"{where}: the column {name!r} must hold 0 or 1, got {row[name]!r}")
    return frozenset(name for name in classes if row[name].strip() == "1")
