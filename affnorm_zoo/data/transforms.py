"""Augmentation and preprocessing of single images, in the workers, as 8-bit pixels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.transforms import ToNumpy
from torchvision import transforms

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.presets import get_preset
from affnorm_zoo.data.sources import Source


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images reach the model: size in pixels, statistics of the pixels in [0, 1], test-time crop."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def resolve_preprocessing(config: DataConfig, source: Source, pretrained_cfg: dict) -> Preprocessing:
    """Take each value from the config, else from its preset, else from the data, else from the model.

    Raises:
        UsageError: the preset is not known.
    """
    preset = get_preset(config.preset) if config.preset else None

    def pick(name: str, fallback: object) -> object:
        for place in (config, preset, source):
            value = getattr(place, name, None)
            if value is not None:
                return value
        return fallback

    size = pick("image_size", pretrained_cfg["input_size"][-1])
    return Preprocessing(
        input_size=(source.in_chans, size, size),
        mean=tuple(pick("mean", pretrained_cfg["mean"])),
        std=tuple(pick("std", pretrained_cfg["std"])),
        crop_pct=pick("crop_pct", pretrained_cfg.get("crop_pct") or 1.0),
        interpolation=pretrained_cfg.get("interpolation") or "bicubic",
    )


def train_transform(config: DataConfig, preprocessing: Preprocessing) -> Callable:
    """PIL image to uint8 array (C, H, W), augmented."""
    size = preprocessing.input_size[-1]
    if config.crop == "resized":
        transform = create_transform(
            preprocessing.input_size,
            is_training=True,
            use_prefetcher=True,
            hflip=config.hflip,
            auto_augment=config.auto_augment,
            color_jitter=0.0,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
        )
        return allow_posterize_to_black(transform)
    steps: list[Callable] = [transforms.Resize(size), transforms.CenterCrop(size)]
    if config.crop == "padded":
        steps = [transforms.Resize(size), transforms.RandomCrop(size, padding=shift_range(size))]
    if config.hflip:
        steps.append(transforms.RandomHorizontalFlip(config.hflip))
    return transforms.Compose([*steps, ToNumpy()])


def eval_transform(preprocessing: Preprocessing) -> Callable:
    """PIL image to uint8 array (C, H, W), resized and cropped as timm does at test time."""
    return create_transform(
        preprocessing.input_size,
        is_training=False,
        use_prefetcher=True,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
    )


def keeps_pixels(preprocessing: Preprocessing, size: int) -> bool:
    """Whether :func:`eval_transform` leaves square images of this size as they are."""
    return preprocessing.crop_pct == 1 and preprocessing.input_size[-1] == size


def shift_range(size: int) -> int:
    """Largest shift of ``data.crop=padded``, in pixels, for images of this size."""
    return max(size // 8, 1)


def allow_posterize_to_black(transform: Callable) -> Callable:
    """Let this transform's posterize keep zero bits where Pillow refuses it, as Pillow 13 does and 12 did not."""
    try:
        posterize(Image.new("RGB", (1, 1)), 0)
    except ValueError:
        for op in _augment_ops(transform):
            if op.aug_fn is posterize:
                op.aug_fn = _posterize_or_black
    return transform


def _posterize_or_black(image: Image.Image, bits_to_keep: int, **kwargs: object) -> Image.Image:
    if bits_to_keep < 1:
        return image.point(lambda _: 0)
    return posterize(image, bits_to_keep, **kwargs)


def _augment_ops(transform: object) -> Iterator[AugmentOp]:
    """Find the ops of timm's automatic augmentations, which hold them in lists of lists."""
    if isinstance(transform, AugmentOp):
        yield transform
    elif isinstance(transform, list | tuple):
        for part in transform:
            yield from _augment_ops(part)
    else:
        for name in ("transforms", "ops", "policy"):
            yield from _augment_ops(getattr(transform, name, ()))
