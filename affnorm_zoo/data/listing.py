"""Which files of a folder or a tar are pictures and which are skipped, by the same rule."""

import os
import posixpath
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image, features

from affnorm_zoo.errors import UsageError

Span = tuple[int, int]  # first byte and number of bytes of a file in a tar

# Pillow registers these, but needs another program to draw them, or cannot draw them at all
_NOT_STILL_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # format -> what Pillow must be built with
_HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}  # of macOS, NAS, Windows
_MOST_REASONS = 8  # that a message names
_MOST_LINKS = 16  # from link to link in a tar, before they count as a loop
_NO_FILE, _SPECIAL = "a link to no file", "not regular"  # reasons


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


def list_folder(root: Path) -> Listing:
    """Walk a folder. Links are followed, except back into the folder itself.

    Raises:
        UsageError: a folder cannot be read.
    """
    listing = Listing()
    _walk(str(root), "", [_identity(str(root))], os.path.realpath(root), listing)
    return listing


def list_tar(path: Path) -> Listing:
    """List the pictures in a tar and in tars within it; an inner tar counts as a folder of its name.

    A tar of the split's folder itself holds just that folder at the top, and is listed from there.

    Raises:
        UsageError: it is not an uncompressed tar, or it is cut off.
    """
    content = _TarContent()
    try:
        with tarfile.open(path, "r:") as tar:
            _read_members(tar, "", 0, content)
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    folders = content.folders | {name.rpartition("/")[0] for name in content.files if "/" in name}
    tops = {name.partition("/")[0] for name in folders}
    prefix = f"{path.stem}/" if {top for top in tops if not is_hidden(top)} == {path.stem} else ""
    listing, hidden = Listing(), set()
    for name in folders:
        top = name.removeprefix(prefix).partition("/")[0]
        if f"{name}/" != prefix and not is_hidden(top):
            listing.folders.add(top)
    for name, span in content.files.items():
        below = name.removeprefix(prefix)
        parents = below.split("/")[:-1]
        first = next((number for number, part in enumerate(parents) if is_hidden(part)), None)
        if first is not None:
            hidden.add("/".join(parents[: first + 1]))
        elif reason := content.odd.get(name) or _reason_by_name(below) or ("" if span[1] else "empty"):
            _note(listing.files_passed, reason, below)
        else:
            listing.names.append(below)
            listing.spans.append(span)
    if hidden:
        listing.folders_passed["hidden"] = sorted(hidden)
    return listing


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or a system's own, such as ``.ipynb_checkpoints`` or ``__MACOSX``."""
    return name.startswith(".") or name in _HIDDEN


def _walk(path: str, prefix: str, above: list[tuple[int, int]], root: str, listing: Listing) -> None:
    """Add the content of the folder ``path``, which is ``prefix`` below the split."""
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"the folder {path} cannot be read: {error.strerror}") from error
    for entry in found:
        name = prefix + entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            is_folder = is_file = False
        if is_folder:
            identity = _identity(entry.path)
            if is_hidden(entry.name):
                _note(listing.folders_passed, "hidden", name)
            elif identity in above or (entry.is_symlink() and _leads_back(entry.path, root)):
                _note(listing.folders_passed, "a link back", name)
            else:
                if not prefix:
                    listing.folders.add(name)
                _walk(entry.path, name + "/", [*above, identity], root, listing)
        elif not is_file:
            _note(listing.files_passed, _NO_FILE if entry.is_symlink() else _SPECIAL, name)
        elif reason := _reason_by_name(name) or _reason_by_size(entry):
            _note(listing.files_passed, reason, name)
        else:
            listing.names.append(name)


def _reason_by_name(name: str) -> str:
    """Why the file at this path below the split is not a picture of a class; empty if it is one."""
    folder, _, file = name.rpartition("/")
    if is_hidden(file):
        return "hidden"
    extension = posixpath.splitext(file)[1].lower()
    if extension not in picture_extensions():
        return extension or "without an extension"
    return "" if folder else "outside the class folders"


def _reason_by_size(entry: os.DirEntry) -> str:
    try:
        return "" if entry.stat().st_size else "empty"
    except OSError:  # removed since the folder was read
        return _NO_FILE


@dataclass
class _TarContent:
    """The content of a tar by path: files with their spans in the outermost tar, and reasons for skipping."""

    files: dict[str, Span] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    odd: dict[str, str] = field(default_factory=dict)


def _read_members(tar: tarfile.TarFile, prefix: str, base: int, content: _TarContent) -> None:
    """Add the content of a tar that begins at byte ``base`` of the outermost one."""
    links: dict[str, str] = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
        name = prefix + _clean(member.name)
        if member.isdir():
            content.folders.add(name.rstrip("/") or ".")
        elif member.islnk():
            links[name] = prefix + _clean(member.linkname)
        elif member.issym():
            links[name] = prefix + _clean(posixpath.join(posixpath.dirname(member.name), member.linkname))
        elif member.isreg() and name.lower().endswith(".tar"):
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                _read_members(inner, f"{name[:-4]}/", base + member.offset_data, content)
        else:
            # a later entry of the same path replaces the earlier one, as on unpacking
            content.files[name] = base + member.offset_data, member.size
            if not member.isreg() or member.issparse():
                content.odd[name] = _SPECIAL
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
        # tarfile takes a damaged or truncated header for the end
        raise tarfile.ReadError(f"it is damaged or cut off at byte {base + tar.offset:,}")
    for name, target in links.items():
        for _ in range(_MOST_LINKS):
            target = links.get(target, target)
        if target in links or target in content.odd or target not in content.files:
            content.odd[name] = _NO_FILE
        content.files[name] = content.files.get(target, (0, 0))


def _clean(name: str) -> str:
    """A path in a tar, normalised."""
    return posixpath.normpath("/" + name).lstrip("/")


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _leads_back(path: str, root: str) -> bool:
    """Whether a link leads above the split or into it, where its pictures are already counted.

    What is hidden there is not counted, and may be where the pictures are kept.
    """
    target = os.path.realpath(path)
    common = os.path.commonpath([target, root])
    return common == target or (common == root and not any(map(is_hidden, Path(target[len(root) :]).parts)))


def _note(passed: dict[str, list[str]], reason: str, name: str) -> None:
    passed.setdefault(reason, []).append(name)


def _by_reason(passed: dict[str, list[str]]) -> str:
    """The reasons with counts and an example, the most frequent ones first."""
    ordered = sorted(passed.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [
        f"{len(names):,} {reason} ({'such as ' * (len(names) > 1)}{min(names)})"
        for reason, names in ordered[:_MOST_REASONS]
    ]
    rest = sum(len(names) for _, names in ordered[_MOST_REASONS:])
    return ", ".join([*shown, *([f"{rest:,} of other kinds"] if rest else [])])
