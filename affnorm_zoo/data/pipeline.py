"""Datasets to batches: decode and augment in the workers as 8-bit pixels, normalise on the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.data import create_transform
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.sampler import SeededDataset, ShardedBatches
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
    """Take each value from the config, else from the data, else from the model."""
    size = config.image_size or source.image_size or pretrained_cfg["input_size"][-1]
    return Preprocessing(
        input_size=(source.in_chans, size, size),
        mean=tuple(config.mean or source.mean or pretrained_cfg["mean"]),
        std=tuple(config.std or source.std or pretrained_cfg["std"]),
        crop_pct=1.0 if source.image_size else pretrained_cfg.get("crop_pct") or 1.0,
        interpolation=pretrained_cfg.get("interpolation") or "bicubic",
    )


def train_transform(config: DataConfig, preprocessing: Preprocessing) -> Callable:
    """PIL image to uint8 array (C, H, W), augmented."""
    size = preprocessing.input_size[-1]
    if config.crop == "resized":
        return create_transform(
            preprocessing.input_size,
            is_training=True,
            use_prefetcher=True,
            hflip=config.hflip,
            auto_augment=config.auto_augment,
            color_jitter=0.0,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
        )
    steps: list[Callable] = [transforms.Resize(size), transforms.CenterCrop(size)]
    if config.crop == "padded":
        steps = [transforms.Resize(size), transforms.RandomCrop(size, padding=max(size // 8, 1))]
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


def train_loader(
    source: Source, config: DataConfig, batches: ShardedBatches, preprocessing: Preprocessing
) -> DataLoader:
    """Loader of (images uint8, labels) micro-batches, in the order of ``batches``."""
    source.train.transform = train_transform(config, preprocessing)
    return DataLoader(
        SeededDataset(source.train, batches.seed),
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
    )


def eval_loader(
    dataset, preprocessing: Preprocessing, *, batch_size: int, workers: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader:
    """Loader of this process's share of a dataset: every image exactly once over all processes, none repeated."""
    dataset.transform = eval_transform(preprocessing)
    return DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
    )


class Normalize:
    """Pixels of 0 to 255, (N, C, H, W), to the model's units on the device: (x/255 - mean) / std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1) * 255
        self.std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.mean.device, torch.float32, non_blocking=True).sub_(self.mean).div_(self.std)
