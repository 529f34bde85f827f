"""Datasets to batches: decode and augment in the workers as 8-bit pixels, normalise on the device."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import in_memory
from affnorm_zoo.data.packed import PackedImages
from affnorm_zoo.data.sampler import SeededDataset, ShardedBatches
from affnorm_zoo.data.sources import Source
from affnorm_zoo.data.streams import Stream, StreamedBatches, StreamLoader, StreamShare
from affnorm_zoo.data.transforms import Preprocessing, eval_transform, keeps_pixels, shift_range, train_transform
from affnorm_zoo.data.workers import check_shared_memory, shield_worker
from affnorm_zoo.errors import UsageError


def train_loader(
    source: Source,
    config: DataConfig,
    batches: ShardedBatches | StreamedBatches,
    preprocessing: Preprocessing,
    device: torch.device = torch.device("cpu"),  # noqa: B008 a constant
) -> Iterable[tuple[Tensor, Tensor]]:
    """Loader of (images uint8, labels) micro-batches, in the order of ``batches``.

    Data that are small, square and augmented by shifts and flips only are decoded once and stay on the device.

    Raises:
        UsageError: the batches of the workers do not fit into shared memory, or ``data.in_memory=always`` and the
            images are not square.
    """
    if isinstance(batches, StreamedBatches):
        source.train.transform = train_transform(config, preprocessing)
        return StreamLoader(source.train, batches, config.workers, config.timeout_seconds)
    size = preprocessing.input_size[-1]
    image_bytes = source.in_chans * size**2
    if _fits_in_memory(config, source.num_train * image_bytes):
        try:
            images, labels = _decode(source.train, in_memory.WholeImage(size), config, f"whole image, {size} px")
        except in_memory.OddSizeError as error:
            if config.in_memory == "always":
                raise UsageError(f"data.in_memory=always needs square images: {str(error).splitlines()[-1]}") from error
        else:
            return in_memory.InMemoryLoader(
                images,
                labels,
                batches,
                padding=shift_range(size) if config.crop == "padded" else 0,
                hflip=config.hflip,
                seed=batches.seed,
                device=device,
            )
    check_shared_memory(config.workers, batches.micro_batch_size * image_bytes)
    source.train.transform = train_transform(config, preprocessing)
    return DataLoader(
        SeededDataset(source.train, batches.seed),
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
        worker_init_fn=shield_worker,
        timeout=config.timeout_seconds if config.workers else 0,
        generator=torch.Generator(),  # a new iterator draws from it, and must not move the run's own generators
    )


def val_loader(
    source: Source,
    config: DataConfig,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterable[tuple[Tensor, Tensor]]:
    """The :func:`eval_loader` of a run, which decodes once and keeps the batches on the device if they are small."""
    num_bytes = source.num_val * source.in_chans * preprocessing.input_size[-1] ** 2
    keeps = config.in_memory == "always" or (config.in_memory == "auto" and num_bytes <= in_memory.MAX_BYTES)
    if keeps and config.cache and not source.is_stream:
        what = f"evaluation, {preprocessing.input_size[-1]} px, {preprocessing.crop_pct}, {preprocessing.interpolation}"
        images, labels = _decode(source.val, eval_transform(preprocessing), config, what)
        share = range(source.num_val)[rank::world_size]
        return in_memory.KeptBatches(in_memory.HeldBatches(images, labels, share, batch_size), device)
    loader = eval_loader(
        source.val, preprocessing, batch_size=batch_size, workers=config.workers, rank=rank, world_size=world_size
    )
    return in_memory.KeptBatches(loader, device) if keeps else loader


def eval_loader(
    dataset: Any,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    indices: Sequence[int] | None = None,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Loader of this process's share of a dataset: every image exactly once over all processes, none repeated.

    ``indices`` are the images to take, if not all; a stream has no indices and gives all.
    """
    dataset.transform = eval_transform(preprocessing)
    if isinstance(dataset, Stream):
        return StreamShare(dataset, batch_size, workers, rank, world_size)
    chosen = (range(len(dataset)) if indices is None else indices)[rank::world_size]
    held = in_memory.held_images(dataset)
    if held is not None and keeps_pixels(preprocessing, held[0].shape[-1]):
        return in_memory.HeldBatches(*held, chosen, batch_size)
    return DataLoader(
        Subset(dataset, chosen),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=shield_worker,
        generator=torch.Generator(),
    )


def describe_loading(source: Source, config: DataConfig, loader: Iterable) -> str:
    """Where the training images come from, as one line of text."""
    if not isinstance(loader, in_memory.InMemoryLoader):
        return f"the images of {source.name} are decoded in every epoch, by {config.workers} workers"
    size = loader.images.nbytes / 2**20
    origin = f"mapped from {config.path}" if isinstance(source.train, PackedImages) else "decoded once"
    origin = "read from the cache beside them" if config.cache else origin
    return f"the images of {source.name} are held on {loader.images.device} ({size:.0f} MiB), {origin}"


def _decode(dataset: Any, transform: object, config: DataConfig, what: str) -> tuple[Tensor, Tensor]:
    if config.cache:
        return in_memory.decode_once(dataset, transform, config.workers, what)
    return in_memory.decode(dataset, transform, config.workers)


class Normalize:
    """Pixels of 0 to 255, (N, C, H, W), to the model's units on the device: (x/255 - mean) / std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1) * 255
        self.std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.mean.device, torch.float32, non_blocking=True).sub_(self.mean).div_(self.std)

    def undo(self, images: Tensor) -> Tensor:
        """Displayable pictures in [0, 1] of images in the model's units."""
        return images.mul(self.std).add_(self.mean).div_(255).clamp_(0, 1)


def _fits_in_memory(config: DataConfig, num_bytes: int) -> bool:
    if config.in_memory != "auto":
        return config.in_memory == "always"
    return config.crop != "resized" and num_bytes <= in_memory.MAX_BYTES
