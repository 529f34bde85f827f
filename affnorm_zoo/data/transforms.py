"""Augmentation and preprocessing of single images, in the workers, as 8-bit pixels."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.transforms import ToNumpy
from torchvision import transforms

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.presets import get_preset
from affnorm_zoo.data.sources import Source
from affnorm_zoo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images reach the model: size in pixels, statistics of the pixels in [0, 1], test-time crop."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def resolve_preprocessing(
    config: DataConfig, source: Source, pretrained_cfg: dict, *, trained: bool = False
) -> Preprocessing:
    """Take each value from the config, or its preset, or the data, or the model: the first that has one.

    For a ``trained`` model, its own values come before the data's, as its weights depend on them.

    Raises:
        UsageError: the preset is not known, or the mean or the standard deviation is not one number per channel.
    """

    def pick(name: str, fallback: Any) -> Any:
        value = _given(config, name)
        if value is None and not trained:
            value = getattr(source, name)
        return fallback if value is None else value

    size = pick("image_size", pretrained_cfg["input_size"][-1])
    statistics = {name: tuple(pick(name, pretrained_cfg[name])) for name in ("mean", "std")}
    for name, values in statistics.items():
        if len(values) != source.in_chans:
            raise UsageError(
                f"data.{name} must hold {source.in_chans} numbers, one per channel of {source.name}, got {values}"
            )
    return Preprocessing(
        input_size=(source.in_chans, size, size),
        **statistics,
        crop_pct=pick("crop_pct", pretrained_cfg.get("crop_pct") or 1.0),
        interpolation=pretrained_cfg.get("interpolation") or "bicubic",
    )


def _given(config: DataConfig, name: str) -> Any:
    """A value of the config, or otherwise of its preset."""
    value = getattr(config, name)
    if value is None and config.preset:
        value = getattr(get_preset(config.preset), name)
    return value


def train_transform(config: DataConfig, preprocessing: Preprocessing) -> Callable:
    """PIL image to uint8 array (C, H, W), augmented.

    Raises:
        UsageError: ``data.auto_augment`` is not in timm's notation.
    """
    size = preprocessing.input_size[-1]
    if config.crop == "resized":
        try:
            _check_numbers(config.auto_augment or "")
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
            transform = allow_posterize_to_black(transform)
            _try_augmentation(transform, "L" if preprocessing.input_size[0] == 1 else "RGB")
        except Exception as error:  # timm raises errors of many types here, without a message of its own
            raise UsageError(
                f"data.auto_augment={config.auto_augment} is not timm's notation, such as rand-m9-mstd0.5-inc1, "
                f"augmix-m5-w4-d2, original or 3a ({type(error).__name__}: {error})"
            ) from error
        return transform
    steps: list[Callable] = [transforms.Resize(size), transforms.CenterCrop(size)]
    if config.crop == "padded":
        steps = [transforms.Resize(size), transforms.RandomCrop(size, padding=shift_range(size))]
    if config.hflip:
        steps.append(transforms.RandomHorizontalFlip(config.hflip))
    return transforms.Compose([*steps, ToNumpy()])


def _check_numbers(policy: str) -> None:
    """Raise ValueError for a part that timm would skip: it holds no digit and names no set of transforms."""
    for part in policy.split("-")[1:]:
        if not part.startswith("t") and not any(map(str.isdigit, part)):
            raise ValueError(f"{part!r} must hold a number, such as m9")


def _try_augmentation(transform: Callable, mode: str) -> None:
    """Apply the transform, and each of its operations alone; the state of the generators is restored."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        image = Image.new(mode, (16, 16), 99 if mode == "L" else (99, 9, 0))
        transform(image)
        for op in _augment_ops(transform):
            op(image)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


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
    """Whether :func:`eval_transform` leaves square images of this size unchanged."""
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
