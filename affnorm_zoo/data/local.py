"""Where the splits of a folder lie."""

import logging
import os
from pathlib import Path

from affnorm_zoo.config import DataConfig, is_file, is_folder
from affnorm_zoo.errors import UsageError

_logger = logging.getLogger(__name__)


def find_root(config: DataConfig) -> Path:
    """The folder of all splits.

    Raises:
        UsageError: it does not exist.
    """
    root = Path(config.local_path)
    if not is_folder(root):
        existing = next(parent for parent in root.absolute().parents if is_folder(parent))
        raise UsageError(f"data.path: {root} is not a folder; the nearest one that exists is {existing}")
    return root


def has_split(root: Path, split: str) -> bool:
    """Whether a split has a folder or a tar of its own."""
    return is_folder(root / split) or is_file(root / f"{split}.tar")


def find_split(config: DataConfig, split: str, key: str) -> Path:
    """The folder or tar of a split.

    Args:
        key: the setting that names the split, for the message.

    Raises:
        UsageError: there is neither.
    """
    root = find_root(config)
    if not has_split(root, split):
        found = sorted(path.name for path in root.iterdir() if path.is_dir() or path.suffix == ".tar")
        packed = sorted(path.name for path in root.iterdir() if path.is_file() and path.name.startswith(f"{split}."))
        raise UsageError(
            f"{key}: {root} has no folder {split!r} and no {split}.tar; it has "
            f"{', '.join(found[:8]) or 'no folders at all'}"
            + (f", but {packed[0]}: unpack it, as no archive is read but an uncompressed tar" if packed else "")
        )
    folder, tar = root / split, root / f"{split}.tar"
    if is_folder(folder) and is_file(tar) and _is_first():
        _logger.warning("%s is read, and %s beside it is not", folder, tar)
    return folder if is_folder(folder) else tar


def tell_passed(path: Path, passed: str) -> None:
    """Report once, over all processes, what was skipped below a path; nothing if ``passed`` is empty."""
    if passed and _is_first():
        _logger.warning("%s: %s", path, passed)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
