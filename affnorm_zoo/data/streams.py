"""WebDataset shards through timm's reader: a stream in its own order, reproducible from the start of each epoch."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.data.loader import fast_collate
from timm.data.readers import create_reader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from affnorm_zoo.config import DataConfig
from affnorm_zoo.data.sampler import Key
from affnorm_zoo.data.workers import shield_worker
from affnorm_zoo.errors import UsageError


class Stream(IterableDataset):
    """Images and labels of one of timm's streaming readers; ``num_images`` is the declared size of its shards."""

    def __init__(self, reader: Any, num_classes: int) -> None:
        self.reader = reader
        self.num_classes = num_classes
        self.num_images = reader.num_samples
        self.transform: Callable | None = None

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for image, label in self.reader:
            if not 0 <= label < self.num_classes:
                raise UsageError(f"a label of the stream is {label}, outside the data.num_classes={self.num_classes}")
            yield (image if self.transform is None else self.transform(image)), label


def open_wds(config: DataConfig, split: str, key: str, *, is_training: bool) -> Stream:
    """Open a split of ``wds/FOLDER``: one of its info file, or shards with a count such as ``a-{0..7}.tar|9000``.

    Raises:
        UsageError: webdataset is not installed, the number of classes is not set, or the split is not there.
    """
    if config.num_classes is None:
        raise UsageError("WebDataset shards do not name their classes: set data.num_classes")
    try:
        reader = create_reader("wds/", root=config.local_path, split=split, is_training=is_training)
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{key}={split}: {config.path} cannot be read: {' '.join(str(error).split())}") from error
    if not reader.num_samples:
        raise UsageError(f"{key}={split}: write the number of images behind the shards, as in 'a-{{0..7}}.tar|9000'")
    return Stream(reader, config.num_classes)


class StreamedBatches:
    """The equal windows of a stream, with the interface of :class:`ShardedBatches`; its images have no indices."""

    def __init__(
        self, stream: Stream, global_batch_size: int, micro_batch_size: int, world_size: int, workers: int, seed: int
    ) -> None:
        stream.reader.batch_size = micro_batch_size
        stream.reader.set_loader_cfg(num_workers=workers)
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.num_micro = global_batch_size // (micro_batch_size * world_size)
        self.num_updates = len(stream.reader) // micro_batch_size // self.num_micro
        self.epoch = 0

    def set_epoch(self, epoch: int, first_update: int = 0) -> None:
        """Choose the order of the next iteration.

        Raises:
            UsageError: it would begin within the epoch.
        """
        if first_update not in (0, self.num_updates):
            raise UsageError("a stream can only be resumed from the end of an epoch: choose such a checkpoint")
        self.epoch = epoch

    def share(self, update: int) -> int:  # noqa: ARG002 as ShardedBatches
        return self.micro_batch_size * self.num_micro

    @property
    def smallest_batch(self) -> int:
        return self.micro_batch_size

    def num_micro_batches(self, update: int) -> int:  # noqa: ARG002 likewise
        return self.num_micro

    def global_batch(self, epoch: int, update: int) -> list[Key]:  # noqa: ARG002 likewise
        return []


class StreamLoader:
    """Micro-batches of a stream; the workers are new in every epoch and seeded by it."""

    def __init__(self, stream: Stream, batches: StreamedBatches, workers: int, timeout: int) -> None:
        self.stream = stream
        self.batches = batches
        self.arguments: dict[str, Any] = {
            "num_workers": workers,
            "timeout": timeout,
            "batch_size": batches.micro_batch_size,
        }

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.stream.reader.set_epoch(self.batches.epoch)
        words = np.random.SeedSequence((self.batches.seed, self.batches.epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(words[0]))
        yield from DataLoader(
            self.stream,
            **self.arguments,
            drop_last=True,
            collate_fn=fast_collate,
            worker_init_fn=shield_worker,
            generator=generator,
            pin_memory=torch.cuda.is_available(),
        )


class StreamShare:
    """This process's share of a validation stream: all processes read all of it, and each keeps its own batches."""

    def __init__(self, stream: Stream, batch_size: int, workers: int, rank: int, world_size: int) -> None:
        stream.reader.dist_rank, stream.reader.dist_num_replicas = (
            0,
            1,
        )  # timm's split repeats images or leaves some out
        self.stream = stream
        self.rank = rank
        self.world_size = world_size
        self.loader = DataLoader(
            stream,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=fast_collate,
            worker_init_fn=shield_worker,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from islice(self._counted(self.loader), self.rank, None, self.world_size)

    def _counted(self, loader: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
        """Pass the batches on and count their images: timm's reader silently skips those that it cannot read."""
        count = 0
        for images, labels in loader:
            count += len(labels)
            yield images, labels
        if count != self.stream.num_images:
            raise UsageError(f"{count} of the {self.stream.num_images} validation images of the shards could be read")
