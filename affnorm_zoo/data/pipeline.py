"""Datasets to batches: decode and augment in the workers as 8-bit pixels, normalise on the device."""

from collections.abc import Iterable, Sequence

import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data import in_memory
from affnorm_zoo.data.sampler import SeededDataset, ShardedBatches
from affnorm_zoo.data.sources import Source
from affnorm_zoo.data.streams import Stream, StreamedBatches, StreamLoader, StreamShare
from affnorm_zoo.data.transforms import Preprocessing, eval_transform, shift_range, train_transform
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
            images, labels = in_memory.decode(source.train, in_memory.WholeImage(size), config.workers)
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


def eval_loader(
    dataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    indices: Sequence[int] | None = None,
) -> Iterable[tuple[Tensor, Tensor]]:
    """Loader of this process's share of a dataset: every image exactly once over all processes, none repeated.

    ``indices`` are the images to take, if not all; a stream has no numbers and gives all.
    """
    dataset.transform = eval_transform(preprocessing)
    if isinstance(dataset, Stream):
        return StreamShare(dataset, batch_size, workers, rank, world_size)
    return DataLoader(
        Subset(dataset, (range(len(dataset)) if indices is None else indices)[rank::world_size]),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=shield_worker,
        generator=torch.Generator(),
    )


class Normalize:
    """Pixels of 0 to 255, (N, C, H, W), to the model's units on the device: (x/255 - mean) / std."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.mean = torch.tensor(preprocessing.mean, device=device).view(-1, 1, 1) * 255
        self.std = torch.tensor(preprocessing.std, device=device).view(-1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(self.mean.device, torch.float32, non_blocking=True).sub_(self.mean).div_(self.std)


def _fits_in_memory(config: DataConfig, num_bytes: int) -> bool:
    if config.in_memory != "auto":
        return config.in_memory == "always"
    return config.crop != "resized" and num_bytes <= in_memory.MAX_BYTES
