"""Which files of a folder or a tar are pictures and which are skipped, by the same rule."""

import posixpath
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, features

from affnorm_zoo.data.trees import DiskTree, Entry, TarTree, Tree, is_hidden
from affnorm_zoo.errors import UsageError

Span = tuple[int, int]  # first byte and number of bytes of a file in a tar

# Pillow registers these, but needs another program to draw them, or cannot draw them at all
_NOT_STILL_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # format -> what Pillow must be built with
_MOST_REASONS = 8  # that a message names
_KIND_REASONS = {"nothing": "a link to no file", "special": "not regular"}


@cache
def picture_extensions() -> frozenset[str]:
    """Extensions, in lower case, of the still pictures and animations that this Pillow reads."""
    formats = Image.registered_extensions().items()  # loads all of Pillow's plugins
    return frozenset(
        extension
        for extension, name in formats
        if (name in Image.OPEN or name == "MPO")  # opened by the plugin of JPEG
        and name not in _NOT_STILL_PICTURES
        and (name not in _OPTIONAL or features.check(_OPTIONAL[name]))
    )


@dataclass
class Listing:
    """The pictures of a split by their paths below it, its class folders, and what was skipped."""

    names: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)  # of each, if the split is a tar
    folders: set[str] = field(default_factory=set)  # the first ones below the split, with or without pictures
    files_passed: dict[str, list[str]] = field(default_factory=dict)  # reason -> paths
    folders_passed: dict[str, list[str]] = field(default_factory=dict)

    def describe_passed(self) -> str:
        """One line with the number of files that are not read, by reason; empty if there are none."""
        count = sum(map(len, self.files_passed.values()))
        parts = []
        if count:
            reasons = _by_reason(self.files_passed)
            parts.append(f"{count:,} of {count + len(self.names):,} files were not read: {reasons}")
        if self.folders_passed:
            parts.append(f"folders that were not entered: {_by_reason(self.folders_passed)}")
        return "; ".join(parts)


def list_pictures(path: Path, in_classes: bool = True) -> Listing:
    """The pictures below a folder or in a tar; with ``in_classes`` only those in a folder of it, which is their class.

    Raises:
        UsageError: the folder or tar cannot be read.
    """
    return list_folder(path, in_classes) if path.is_dir() else list_tar(path, in_classes)


def list_folder(root: Path, in_classes: bool = True) -> Listing:
    """Walk a folder. Links are followed, except back into the folder itself.

    Raises:
        UsageError: a folder cannot be read.
    """
    walk = _Walk(DiskTree(), str(root), in_classes)
    walk.add(str(root))
    return walk.listing


def list_tar(path: Path, in_classes: bool = True) -> Listing:
    """List the pictures of a tar as :func:`list_folder` does after unpacking; an inner tar is a folder of its name.

    A tar of the split's folder itself holds just that folder at the top, and is listed from there.

    Raises:
        UsageError: it is not an uncompressed tar, or it is cut off.
    """
    try:
        tree = TarTree(path)
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    top, inner = tree.top, f"{tree.top}/{path.stem}"
    folders = {entry.place for entry in tree.entries(top) if entry.kind == "folder" and not is_hidden(entry.name)}
    if folders != {inner}:
        walk = _Walk(tree, top, in_classes)
        walk.add(top)
        return walk.listing
    walk = _Walk(tree, inner, in_classes)
    walk.add(inner)
    walk.add(top, without=inner)
    return walk.listing


class _Walk:
    """Lists the pictures below the folder ``root`` of a tree, which may have to lie in class folders."""

    def __init__(self, tree: Tree, root: str, in_classes: bool) -> None:
        self.tree = tree
        self.in_classes = in_classes
        self.root = tree.real_parts(root)
        self.listing = Listing()

    def add(self, top: str, without: str = "") -> None:
        """Add the content of a folder whose classes are its own folders, except for the folder ``without``."""
        pending: list[tuple[str, str, tuple[object, ...]]] = [(top, "", ())]
        while pending:
            place, prefix, above = pending.pop()
            try:
                entries = list(self.tree.entries(place))
            except OSError as error:
                raise UsageError(f"the folder {place} cannot be read: {error.strerror}") from error
            above = (*above, self.tree.identity(place))
            for entry in entries:
                name = prefix + entry.name
                if entry.kind != "folder":
                    self._add_file(entry, name)
                elif is_hidden(entry.name):
                    _note(self.listing.folders_passed, "hidden", name)
                elif self.tree.identity(entry.place) in above or (entry.is_link and self._leads_back(entry.place)):
                    _note(self.listing.folders_passed, "a link back", name)
                elif entry.place != without:
                    if not prefix:
                        self.listing.folders.add(name)
                    pending.append((entry.place, name + "/", above))

    def _add_file(self, entry: Entry, name: str) -> None:
        outside = "outside the class folders" if self.in_classes and "/" not in name else ""
        reason = _KIND_REASONS.get(entry.kind) or _reason_by_name(name) or outside or ("" if entry.size else "empty")
        if reason:
            _note(self.listing.files_passed, reason, name)
            return
        self.listing.names.append(name)
        if entry.start is not None:
            self.listing.spans.append((entry.start, entry.size))

    def _leads_back(self, place: str) -> bool:
        """Whether a link leads above the split or into it, where its pictures are already counted.

        What is hidden there is not counted, and may be where the pictures are kept.
        """
        target, depth = self.tree.real_parts(place), len(self.root)
        if len(target) < depth:
            return self.root[: len(target)] == target
        return target[:depth] == self.root and not any(map(is_hidden, target[depth:]))


def _reason_by_name(name: str) -> str:
    """Why the file at this path below the split is not a picture; empty if it is one."""
    file = name.rpartition("/")[2]
    if is_hidden(file):
        return "hidden"
    extension = posixpath.splitext(file)[1].lower()
    return "" if extension in picture_extensions() else extension or "without an extension"


def printable(name: str) -> str:
    """A file's name on one line: line breaks, and bytes that are not Unicode, are written as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _note(passed: dict[str, list[str]], reason: str, name: str) -> None:
    passed.setdefault(reason, []).append(name)


def _by_reason(passed: dict[str, list[str]]) -> str:
    """The reasons with counts and an example, the most frequent ones first."""
    ordered = sorted(passed.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [
        f"{len(names):,} {reason} ({'such as ' * (len(names) > 1)}{printable(min(names))})"
        for reason, names in ordered[:_MOST_REASONS]
    ]
    rest = sum(len(names) for _, names in ordered[_MOST_REASONS:])
    return ", ".join([*shown, *([f"{rest:,} of other kinds"] if rest else [])])
