"""Small datasets, decoded once and held as 8-bit tensors on the device, where whole batches are augmented at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from affnorm_zoo.data.sampler import Key

MAX_BYTES = 2**30  # of a dataset that is held without being asked for


class OddSizeError(ValueError):
    """An image is not square after resizing, so that it does not fit into a tensor with the others."""


def decode(dataset: Any, transform: object, workers: int) -> tuple[Tensor, Tensor]:
    """Decode a whole dataset: images (N, C, H, W) uint8 and labels (N,), on the CPU."""
    dataset.transform = transform
    loader = DataLoader(
        dataset, batch_size=256, num_workers=workers, collate_fn=fast_collate, generator=torch.Generator()
    )
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


class WholeImage:
    """PIL image to uint8 array (C, size, size), resized.

    Raises:
        OddSizeError: the image is not square.
    """

    def __init__(self, size: int) -> None:
        self.resize = transforms.Resize(size)
        self.to_numpy = ToNumpy()

    def __call__(self, image):
        if image.width != image.height:
            raise OddSizeError(f"an image has {image.width} x {image.height} pixels")
        return self.to_numpy(self.resize(image))


class InMemoryLoader:
    """Augmented batches of a dataset in memory, in the order of ``batches``.

    The shift and the flip of an image are functions of (seed, epoch, index, repeat), drawn for a whole batch at once
    from a counter-based generator.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        batches: lists of keys.
        padding: largest shift in pixels; what comes in from outside is black.
        hflip: probability of a mirror image.
        seed: of the augmentation.
        device: where the batches, and from now on the dataset, live.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batches: Iterable[list[Key]],
        *,
        padding: int,
        hflip: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.batches = batches
        self.padding = padding
        self.hflip = hflip
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for keys in self.batches:
            index = torch.tensor([index for _, index, _ in keys], device=self.images.device)
            yield self._augment(self.images[index], np.array(keys, dtype=np.uint64)), self.labels[index]

    def _augment(self, images: Tensor, keys: np.ndarray) -> Tensor:
        if not self.padding and not self.hflip:
            return images
        device, (num, channels, height, width) = images.device, images.shape
        draws = uniforms(self.seed, keys, 3)
        shifts = torch.from_numpy((draws[:, :2] * (2 * self.padding + 1)).astype(np.int64)).to(device)
        flips = torch.from_numpy(draws[:, 2] < self.hflip).to(device)
        rows = shifts[:, :1] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(num, -1)
        columns = shifts[:, 1:] + torch.where(flips[:, None], width - 1 - columns, columns)
        padded = F.pad(images, (self.padding,) * 4)
        # one gather of flat positions instead of four index tensors that broadcast
        flat = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(num, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, flat).view(num, channels, height, width)


def uniforms(seed: int, keys: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), (len(keys), count), each a function of (seed, its row of keys, its column).

    Source:
        Steele, Lea & Flood 2014, Fast Splittable Pseudorandom Number Generators, https://doi.org/10.1145/2660193.2660195:
        the SplitMix64 generator, its state chained over the key.
    """
    state = _mix(np.full(len(keys), seed, dtype=np.uint64))
    for column in keys.T:
        state = _mix(state + column.astype(np.uint64))
    words = [_mix(state + np.uint64(number)) for number in range(count)]
    return np.stack([(word >> np.uint64(11)) * 2.0**-53 for word in words], axis=1)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + _GOLDEN  # modulo 2⁶⁴, as everything here
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
