"""A folder, and a tar as the folder that unpacking it gives: both as entries whose links are resolved."""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

Kind = Literal["folder", "file", "special", "nothing"]
_HIDDEN = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}  # of macOS, NAS, Windows
_MOST_LINKS = 40  # from link to link, before they count as a loop; the same as on Linux


@dataclass(frozen=True)
class Entry:
    """What a folder holds under a name. A link has the kind, place and size of what it leads to."""

    name: str
    kind: Kind
    is_link: bool
    place: str = ""  # of a folder: what Tree takes for it
    size: int = 0  # of a file, in bytes
    start: int | None = None  # of a file in a tar: its first byte


class Tree(Protocol):
    """Folders and files, on disk or in a tar."""

    def entries(self, place: str) -> Iterator[Entry]:
        """What a folder holds, in the order of names; an OSError if it cannot be read."""

    def identity(self, place: str) -> object:
        """A value that only the same folder has, by whichever path it is reached."""

    def real_parts(self, place: str) -> tuple[str, ...]:
        """The path of a folder from the top of the tree, without links."""


class DiskTree:
    """Folders on disk; a place is a path."""

    def entries(self, place: str) -> Iterator[Entry]:
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            is_link = entry.is_symlink()
            kind: Kind = "nothing" if is_link else "special"
            size = 0
            try:
                if entry.is_dir():
                    kind = "folder"
                elif entry.is_file():
                    kind, size = "file", entry.stat().st_size
            except OSError:  # a link to itself, or removed since the folder was read
                kind = "nothing"
            yield Entry(entry.name, kind, is_link, entry.path, size=size)

    def identity(self, place: str) -> object:
        found = Path(place).stat()
        return found.st_dev, found.st_ino

    def real_parts(self, place: str) -> tuple[str, ...]:
        return Path(os.path.realpath(place)).parts


class _File(NamedTuple):
    start: int
    size: int
    is_regular: bool


class _Link(NamedTuple):
    target: str


_Folder = dict[str, "_Folder | _File | _Link"]
_NOWHERE = _Link("/")


class TarTree:
    """The content of a tar; a tar within it is a folder of its name. A place is a path without links.

    The top of the tar is the folder ``path.stem`` of an otherwise empty one: links that leave the split and come back
    lead to the same files as after unpacking. Absolute links, and those to elsewhere, lead nowhere.

    Raises:
        tarfile.TarError: it is not an uncompressed tar, or it is cut off.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.top = path.stem
        self._outside: _Folder = {self.top: {}}
        with tarfile.open(path, "r:") as tar:
            self._read(tar, self.top, 0)

    def entries(self, place: str) -> Iterator[Entry]:
        _, folder = self._find(place)
        assert isinstance(folder, dict)
        for name, found in sorted(folder.items()):
            is_link = isinstance(found, _Link)
            real, node = self._find(f"{place}/{name}") if is_link else (f"{place}/{name}", found)
            if isinstance(node, dict):
                yield Entry(name, "folder", is_link, real)
            elif isinstance(node, _File) and node.is_regular:
                yield Entry(name, "file", is_link, size=node.size, start=node.start)
            else:
                yield Entry(name, "nothing" if is_link else "special", is_link)

    def identity(self, place: str) -> object:
        return place

    def real_parts(self, place: str) -> tuple[str, ...]:
        return tuple(filter(None, place.split("/")))  # none for the folder that holds the top

    def _read(self, tar: tarfile.TarFile, place: str, base: int) -> None:
        """Add the content of a tar that begins at byte ``base`` of the outermost one."""
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
            name = _below(place, member.name)
            if name == place:
                continue  # the top itself
            if member.isdir():
                self._put(name, {})
            elif member.issym():
                self._put(name, _Link(member.linkname))
            elif member.islnk():
                target = self._get(_below(place, member.linkname))
                self._put(name, target if isinstance(target, _File | _Link) else _NOWHERE)
            elif member.isreg() and name.lower().endswith(".tar") and not any(map(is_hidden, name.split("/")[1:])):
                with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                    self._put(name[:-4], {})
                    self._read(inner, name[:-4], base + member.offset_data)
            else:
                is_regular = member.isreg() and not member.issparse()
                self._put(name, _File(base + member.offset_data, member.size, is_regular))
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0") or tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
            # tarfile takes a damaged or truncated header for the end
            raise tarfile.ReadError(f"it is damaged or cut off at byte {base + tar.offset:,}")

    def _put(self, place: str, node: "_Folder | _File | _Link") -> None:
        """Add an entry; a later one of the same path replaces the earlier one, as on unpacking."""
        *parents, name = place.split("/")
        folder = self._outside
        for part in parents:
            below = folder.get(part)
            if not isinstance(below, dict):
                below = folder[part] = {}
            folder = below
        if not (node == {} and isinstance(folder.get(name), dict)):
            folder[name] = node

    def _get(self, place: str) -> "_Folder | _File | _Link | None":
        """The entry of this path, not followed where it is a link."""
        node: _Folder | _File | _Link | None = self._outside
        for part in place.split("/"):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _find(self, place: str) -> "tuple[str, _Folder | _File | None]":
        """Where a path leads to without links, and what is there; None if nothing is."""
        pending = place.split("/")[::-1]
        names: list[str] = []
        nodes: list[_Folder | _File] = [self._outside]
        links = 0
        while pending:
            part, here = pending.pop(), nodes[-1]
            if not isinstance(here, dict):
                return "", None
            if part == ".." and names:
                names.pop()
                nodes.pop()
            elif part not in ("", "."):
                node = here.get(part)
                if isinstance(node, _Link) and not node.target.startswith("/") and links < _MOST_LINKS:
                    links += 1
                    pending += node.target.split("/")[::-1]
                elif node is None or isinstance(node, _Link):
                    return "", None
                else:
                    names.append(part)
                    nodes.append(node)
        return "/".join(names), nodes[-1]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or a system's own, such as ``.ipynb_checkpoints`` or ``__MACOSX``."""
    return name.startswith(".") or name in _HIDDEN


def _below(place: str, name: str) -> str:
    """The path of a tar's member below the tar's own; it does not lead out of it."""
    return f"{place}{posixpath.normpath('/' + name)}".replace("//", "/").rstrip("/")
