from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

_SEED = 0


class Part(Dataset):
    """Some of a dataset's images, with its transform."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    @property
    def transform(self) -> Callable | None:
        """The dataset's own."""
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Callable | None) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def divide(count: int, held_out: int) -> tuple[list[int], list[int]]:
    """Indices of the training images and of the held-out ones; always the same."""
    order = np.random.default_rng(_SEED).permutation(count)
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())
