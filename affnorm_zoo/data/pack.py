from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.data.transforms import ToNumpy
from torchvision import transforms

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.in_memory import decode
from affnorm_zoo.data.packed import PackedInfo, is_packed, write_packed
from affnorm_zoo.data.presets import get_preset
from affnorm_zoo.data.sources import Source, open_source
from affnorm_zoo.errors import UsageError


def pack(config: DataConfig, path: Path) -> PackedInfo:
    """Decode both splits of any indexable dataset into one file that ``data.path`` opens.

    The shorter side is resized to ``data.image_size``, the preset's or the data's own size, as ``data.in_memory`` does.
    Images that are not square are then cropped at their centre.

    Args:
        config: which data; every image must be decodable.
        path: of the file, ending in ``.safetensors``.

    Raises:
        UsageError: the data do not fit, their size is not known, or the file cannot be written.
    """
    if not is_packed(path.name):
        raise UsageError(f"--output must end in .safetensors, by which data.path knows a packed file: got {path}")
    if config.task != "classification":
        raise UsageError("a packed file holds one class per image: leave out data.task=multilabel")
    source = open_source(replace(config, max_bad_images=0, hold_out=0))
    if source.is_stream:
        raise UsageError("pack needs an indexable dataset; a WebDataset stream is not")
    size = config.image_size or (get_preset(config.preset).image_size if config.preset else None) or source.image_size
    transform = CroppedImage(size) if size else SameSize(_first_size(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    splits = {"train": source.train, "val": source.val}
    return write_packed(
        path,
        {split: decode(dataset, transform, config.workers) for split, dataset in splits.items()},
        name=source.name,
        class_names=list(source.class_names),
        splits={"train": config.train_split, "val": config.val_split},
        resize=f"shorter side resized to {size} px, then centre crop" if size else "none",
        mean=source.mean and list(source.mean),
        std=source.std and list(source.std),
        crop_pct=source.crop_pct,
    )


class CroppedImage:
    """PIL image to uint8 array (C, size, size): the shorter side resized, then the centre cropped."""

    def __init__(self, size: int) -> None:
        self.steps: Callable = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), ToNumpy()])

    def __call__(self, image: Any) -> Any:
        return self.steps(image)


class SameSize:
    """PIL image to uint8 array (C, size, size), unchanged.

    Raises:
        UsageError: its size is another.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.to_numpy = ToNumpy()

    def __call__(self, image: Any) -> Any:
        if image.size != self.size or image.width != image.height:
            sizes = " and ".join(f"{width} x {height}" for width, height in sorted({self.size, image.size}))
            raise UsageError(f"the images are not square or not of one size ({sizes} pixels): set data.image_size")
        return self.to_numpy(image)


def _first_size(source: Source) -> tuple[int, int]:
    source.train.transform = None
    image, _ = source.train[0]
    return image.size
