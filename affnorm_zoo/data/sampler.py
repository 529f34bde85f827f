"""Which images go into which batch, as a pure function of (seed, epoch) whatever the number of processes."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class ShardedBatches(Sampler[list[tuple[int, int]]]):
    """Micro-batches of one process, as (epoch, index) pairs.

    The epoch's permutation is cut into global batches, and process r of W takes every W-th image of each from the
    r-th on; so the content of a global batch does not depend on W. What does not fill a last global batch is left out
    of the epoch.

    Args:
        num_samples: size of the dataset.
        global_batch_size: images an update; a multiple of ``micro_batch_size`` times ``world_size``.
        micro_batch_size: images a batch of this process.
        rank, world_size: this process and their number.
        seed: of the permutations.
    """

    def __init__(
        self, num_samples: int, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int, seed: int
    ) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        per_update = self.global_batch_size // (self.micro_batch_size * self.world_size)
        return self.num_samples // self.global_batch_size * per_update

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        for start in range(0, self.num_samples - self.global_batch_size + 1, self.global_batch_size):
            mine = order[start : start + self.global_batch_size][self.rank :: self.world_size]
            for micro in mine.reshape(-1, self.micro_batch_size):
                yield [(self.epoch, int(index)) for index in micro]


class SeededDataset(Dataset):
    """Run a dataset's random augmentation from a seed of (seed, epoch, index), in whichever process it runs."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> object:
        epoch, index = key
        state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        words = np.random.SeedSequence((self.seed, epoch, index)).generate_state(3)
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
