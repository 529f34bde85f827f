"""Which images go into which batch, as a pure function of (seed, epoch) whatever the number of processes."""

import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Key = tuple[int, int, int]  # epoch, index, repeat


class ShardedBatches(Sampler[list[Key]]):
    """Micro-batches of one process, as (epoch, index, repeat) keys.

    The epoch's permutation is cut into global batches. Process r of W takes every W-th image of each, from the r-th on,
    so that the content of a global batch does not depend on W. Images that do not fill the last global batch are left
    out of the epoch. With ``drop_last=False`` they make a smaller batch, of a multiple of W images.

    Args:
        num_samples: size of the dataset.
        global_batch_size: images per update; a multiple of ``micro_batch_size`` times ``world_size``.
        micro_batch_size: images per batch of this process.
        rank, world_size: this process and their number.
        seed: of the permutations.
        repeats: how often an image is in a global batch, each time with its own augmentation. An epoch then has fewer
            images.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        repeats: int = 1,
        drop_last: bool = True,
    ) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.repeats = repeats
        rest = 0 if drop_last else num_samples % global_batch_size
        self.num_updates = num_samples // global_batch_size + (rest >= world_size)  # an epoch
        self.epoch = 0
        self.first_update = 0

    def set_epoch(self, epoch: int, first_update: int = 0) -> None:
        """Choose the permutation of the next iteration, and the update of the epoch that it begins with."""
        self.epoch = epoch
        self.first_update = first_update

    def share(self, update: int) -> int:
        """Images that each process adds to an update of the epoch."""
        return min(self.global_batch_size, self.num_samples - update * self.global_batch_size) // self.world_size

    def num_micro_batches(self, update: int) -> int:
        """Batches of this process that make up an update of the epoch."""
        return -(-self.share(update) // self.micro_batch_size)

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest batch of this process in an epoch."""
        shares = [self.share(update) for update in {0, max(self.num_updates - 1, 0)}]
        return min(share % self.micro_batch_size or self.micro_batch_size for share in shares)

    def global_batch(self, epoch: int, update: int) -> list[Key]:
        """Every image of an update, over all processes."""
        order = _permutation(self.seed, epoch, self.num_samples)
        start = update * self.global_batch_size
        positions = np.arange(start, start + self.share(update) * self.world_size)
        return [(epoch, int(order[p // self.repeats]), int(p % self.repeats)) for p in positions]

    def keys(self) -> np.ndarray:
        """This process's keys from ``first_update`` to the end of the epoch, batch after batch: (M, 3) int64."""
        last = self.num_updates - 1
        end = last * self.global_batch_size + self.share(last) * self.world_size
        positions = np.arange(self.first_update * self.global_batch_size + self.rank, end, self.world_size)
        index = _permutation(self.seed, self.epoch, self.num_samples)[positions // self.repeats]
        return np.stack([np.full_like(index, self.epoch), index, positions % self.repeats], axis=1)

    def sizes(self) -> list[int]:
        """Images of each of these batches."""
        sizes = []
        for update in range(self.first_update, self.num_updates):
            whole, rest = divmod(self.share(update), self.micro_batch_size)
            sizes += [self.micro_batch_size] * whole + [rest] * (rest > 0)
        return sizes

    def __len__(self) -> int:
        return len(self.sizes())

    def __iter__(self) -> Iterator[list[Key]]:
        keys, start = self.keys(), 0
        for size in self.sizes():
            yield [(epoch, index, repeat) for epoch, index, repeat in keys[start : start + size].tolist()]
            start += size


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


class SeededDataset(Dataset):
    """Run a dataset's random augmentation from a seed of (seed, epoch, index, repeat), in whichever process it runs."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: Key) -> object:
        _, index, _ = key
        state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        words = np.random.SeedSequence((self.seed, *key)).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(words[1])
        # the CPU generator itself: torch.manual_seed would also reach for the GPU
        torch.default_generator.manual_seed(int(words[2]))
        try:
            return self.dataset[index]
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])
            torch.default_generator.set_state(state[2])
