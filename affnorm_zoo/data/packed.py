"""A dataset in one file: decoded 8-bit tensors of both splits, which every process maps into memory."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from affnorm_zoo.config import PACKED_SUFFIX, DataConfig, is_file
from affnorm_zoo.errors import UsageError

FORMAT_VERSION = 1
_METADATA = "affnorm_zoo.packed"  # key of the JSON text among the file's metadata


@dataclass(frozen=True, kw_only=True)
class PackedInfo:
    """The metadata of a packed file."""

    version: int
    name: str  # of the data that were packed
    key: str  # SHA-256 of pixels and labels: equal for equal data
    class_names: list[str]
    splits: dict[str, str]  # the splits' original names
    num_images: dict[str, int]  # of train and val
    in_chans: int
    image_size: int
    resize: str  # how the images were resized
    mean: list[float] | None = None  # of the pixels in [0, 1], where the data say so, as the digits do
    std: list[float] | None = None
    crop_pct: float | None = None


class PackedImages(Dataset):
    """Images (N, C, H, W) uint8 and labels (N,) int64 in memory, read one by one like those of a folder."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self.transform: Callable | None = None  # set by the pipeline, as on timm's datasets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def is_packed(path: str) -> bool:
    """Whether ``data.path`` names a packed file."""
    return path.endswith(PACKED_SUFFIX)


def open_packed(config: DataConfig) -> tuple[PackedInfo, PackedImages, PackedImages]:
    """Map a packed file into memory: its metadata, the training and the validation images.

    Raises:
        UsageError: the file is missing, damaged, not a packed one, of another format version, or holds other splits
            than the config names.
    """
    path = Path(config.local_path)
    if not is_file(path):
        raise UsageError(f"data.path: {path} is not a file; affnorm-zoo pack makes one")
    info = _read_info(path)
    for split, key, wanted in (("train", "train_split", config.train_split), ("val", "val_split", config.val_split)):
        if wanted not in (split, info.splits[split]):
            raise UsageError(
                f"data.{key}={wanted}: {path} holds the splits {info.splits['train']} and {info.splits['val']}; "
                "remove the setting, or pack the other split"
            )
    tensors = load_file(path)
    shape = (info.in_chans, info.image_size, info.image_size)
    parts = []
    for split, count in info.num_images.items():
        images, labels = tensors.get(f"{split}.images"), tensors.get(f"{split}.labels")
        if images is None or images.shape != (count, *shape) or images.dtype != torch.uint8:
            raise UsageError(f"{path} is damaged: {split}.images must be uint8 and {(count, *shape)}; pack it again")
        if labels is None or labels.shape != (count,) or not _lie_below(labels, len(info.class_names)):
            raise UsageError(f"{path} is damaged: {split}.labels must be {count} numbers of classes; pack it again")
        parts.append(PackedImages(images, labels))
    return info, parts[0], parts[1]


def write_packed(path: Path, tensors: dict[str, tuple[Tensor, Tensor]], **facts: Any) -> PackedInfo:
    """Write images and labels of ``train`` and ``val`` as a packed file, completely or not at all.

    Args:
        path: of the file, whose folder must exist.
        tensors: images (N, C, H, W) uint8 and labels (N,) int64 per split.
        facts: the fields of :class:`PackedInfo` that do not follow from the tensors.

    Raises:
        UsageError: the file cannot be written.
    """
    images, _ = tensors["train"]
    digest = hashlib.sha256()
    for pair in tensors.values():
        for tensor in pair:
            digest.update(tensor.numpy().data)
    info = PackedInfo(
        version=FORMAT_VERSION,
        key=digest.hexdigest(),
        num_images={split: len(labels) for split, (_, labels) in tensors.items()},
        in_chans=images.shape[1],
        image_size=images.shape[-1],
        **facts,
    )
    named = {f"{split}.{kind}": pair[number] for split, pair in tensors.items() for number, kind in enumerate(_KINDS)}
    try:
        save_whole(path, named, {_METADATA: json.dumps(asdict(info))})
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    return info


def save_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: to a temporary name, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, whose size is checked against its header.

    Raises:
        SafetensorError: the file is not one, or is truncated.
    """
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


_KINDS = ("images", "labels")


def _read_info(path: Path) -> PackedInfo:
    try:
        text = read_metadata(path).get(_METADATA)
    except SafetensorError as error:
        raise UsageError(f"{path} is not a safetensors file, or is damaged ({error}); pack it again") from error
    if text is None:
        raise UsageError(f"{path} is not a packed dataset: data.path takes what affnorm-zoo pack has written")
    facts = json.loads(text)
    if facts.get("version") != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {facts.get('version')}, and this version of affnorm_zoo reads "
            f"{FORMAT_VERSION}: pack the data again"
        )
    return PackedInfo(**facts)


def _lie_below(labels: Tensor, count: int) -> bool:
    return labels.dtype == torch.int64 and bool(((labels >= 0) & (labels < count)).all())
