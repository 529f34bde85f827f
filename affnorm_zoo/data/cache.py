"""Decoded images in a file beside the folder or tar that they come from, keyed by the files there."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import PIL
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from affnorm_zoo.config import PACKED_SUFFIX
from affnorm_zoo.data.images import Images
from affnorm_zoo.data.index import LabelledFiles
from affnorm_zoo.data.packed import read_metadata, save_whole

_logger = logging.getLogger(__name__)
_PREFIX = ".affnorm_zoo"
_KEY = "affnorm_zoo.cache"


def cached(dataset: Images, what: str, decode: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images and labels of a folder or a tar, from their cache; ``decode`` fills it, in one process while others wait.

    The file is ``.affnorm_zoo-SPLIT-….safetensors`` beside the split. If it cannot be written, every process decodes
    for itself. Images that replaced undecodable ones are not kept.

    Args:
        dataset: of a folder or a tar.
        what: names the result of ``decode``, such as its size; each result has its own file.
        decode: gives images (N, C, H, W) uint8 and their labels.
    """
    root = dataset.reader.path
    digest = hashlib.sha256(what.encode()).hexdigest()[:12]
    path = root.with_name(f"{_PREFIX}-{root.name}-{digest}{PACKED_SUFFIX}")
    key = fingerprint(dataset.reader, what)
    found = _read(path, key)  # without the lock, which needs a writable folder
    if found is not None:
        return found
    try:
        held = FileLock(path.with_name(f"{_PREFIX}.lock")).acquire()
    except OSError as error:
        _logger.warning("data.cache: %s cannot be written to (%s); the images are decoded", root.parent, error)
        return decode()
    with held:
        return _read(path, key) or _fill(path, key, dataset, decode)


def fingerprint(index: LabelledFiles, what: str) -> str:
    """A hash of the names, sizes, modification times and labels of an index's files, and of the name of the result."""
    digest = hashlib.sha256(f"{what}, Pillow {PIL.__version__}\n".encode())
    for name in [""] if index.path.is_file() else index.names:
        stat = (index.path / name).stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    digest.update(index.targets.tobytes())
    return digest.hexdigest()


def _read(path: Path, key: str) -> tuple[Tensor, Tensor] | None:
    """The content of a cache; None if it is missing, damaged or made from other files."""
    try:
        if read_metadata(path).get(_KEY) != key:
            return None
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    return tensors["images"], tensors["labels"]


def _fill(path: Path, key: str, dataset: Images, decode: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = decode()
    if len(dataset.bad):
        return images, labels
    try:
        save_whole(path, {"images": images, "labels": labels}, {_KEY: key})
    except (OSError, SafetensorError) as error:
        _logger.warning("data.cache: %s cannot be written (%s); the images were decoded", path, error)
    return images, labels
