"""Atomic checkpoints: written to a temporary folder, listed in a manifest, flushed, then renamed."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import sha256_of
from affnorm_zoo.runs.layout import BEST_LINK, MANIFEST_FILE
from affnorm_zoo.runs.record import FORMAT, FormatError, check_format

_logger = logging.getLogger(__name__)
_TEMPORARY = ".tmp"


def checkpoint_name(windows: int) -> str:
    """The folder name of the checkpoint after this many windows; names sort like their numbers.

    Windows rather than updates: a skipped window moves a run on without an update.
    """
    return f"window_{windows:08d}"


def commit(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, and rename it to ``folder`` when all of it is on disk.

    A crash at any moment leaves the earlier checkpoints intact, and at most a folder that ends in ``.tmp``.
    """
    temporary = folder.with_name(folder.name + _TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in temporary.iterdir()}
        manifest = {"format": FORMAT, "files": files}
        (temporary / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        if folder.exists():  # from an attempt that the run was not resumed from
            _remove(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(folder.parent)


def verify(folder: Path) -> None:
    """Check that a checkpoint is complete and unchanged.

    Raises:
        FormatError: it has another format.
        UsageError: it is not a checkpoint, or a file is missing or does not match the manifest.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise UsageError(f"{folder} is not a complete checkpoint: it has no {MANIFEST_FILE}")
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{folder} is damaged: {MANIFEST_FILE} is not JSON") from error
    check_format(manifest.get("format"), folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UsageError(f"{folder} is damaged: {name} is missing")
        if path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
            raise UsageError(f"{folder} is damaged: {name} differs from what was saved")


def find_latest(root: Path) -> Path | None:
    """The newest intact checkpoint in ``root``; damaged ones are skipped with a warning.

    Raises:
        FormatError: one has another format. Skipping it could start a run again from nothing.
    """
    for folder in sorted(root.glob("window_????????"), reverse=True):
        try:
            verify(folder)
        except FormatError:
            raise
        except UsageError as error:
            _logger.warning("%s; trying an earlier one", error)
        else:
            return folder
    return None


def point_to_best(folder: Path) -> None:
    """Point the link ``best`` next to a checkpoint to it."""
    best, temporary = folder.with_name(BEST_LINK), folder.with_name(BEST_LINK + _TEMPORARY)
    if best.is_dir() and not best.is_symlink():  # a copy of the run that followed links
        _remove(best)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    temporary.replace(best)


def prune(root: Path, keep_last: int, pinned: Collection[str]) -> None:
    """Remove temporary folders, and all checkpoints except the last ``keep_last`` and the pinned ones."""
    for folder in root.glob(f"*{_TEMPORARY}"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in sorted(root.glob("window_????????"))[:-keep_last]:
        if folder.name not in pinned:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Rename a folder so that it no longer looks like a checkpoint, then delete it."""
    condemned = folder.with_name(f"{folder.name}.old{_TEMPORARY}")
    shutil.rmtree(condemned, ignore_errors=True)
    folder.rename(condemned)
    shutil.rmtree(condemned)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
