"""Small datasets, decoded once and held as 8-bit tensors on the device, where whole batches are augmented at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from affnorm_zoo.data.cache import cached
from affnorm_zoo.data.images import Images
from affnorm_zoo.data.packed import PackedImages
from affnorm_zoo.data.part import Part
from affnorm_zoo.data.sampler import ShardedBatches
from affnorm_zoo.data.workers import dead_workers_named

MAX_BYTES = 2**30  # largest dataset that data.in_memory=auto holds


class OddSizeError(ValueError):
    """An image is not square after resizing and does not fit into one tensor with the others."""


def decode(dataset: Any, transform: object, workers: int) -> tuple[Tensor, Tensor]:
    """Decode a whole dataset: images (N, C, H, W) uint8 and labels (N,), on the CPU."""
    held = held_images(dataset)
    if held is not None and isinstance(transform, WholeImage) and held[0].shape[-1] == transform.size:
        return held
    dataset.transform = transform
    loader = DataLoader(
        dataset, batch_size=256, num_workers=workers, collate_fn=fast_collate, generator=torch.Generator()
    )
    with dead_workers_named():
        images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def held_images(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """The tensors of a packed file or of a part of it, unchanged; None for other data."""
    if isinstance(dataset, Part):
        whole = held_images(dataset.dataset)
        return whole and (whole[0][dataset.indices], whole[1][dataset.indices])
    return (dataset.images, dataset.labels) if isinstance(dataset, PackedImages) else None


def decode_once(dataset: Any, transform: object, workers: int, what: str) -> tuple[Tensor, Tensor]:
    """:func:`decode` through the cache beside the data. The cache holds a whole split, even if only a part is used."""
    if isinstance(dataset, Part):
        images, labels = decode_once(dataset.dataset, transform, workers, what)
        return images[dataset.indices], labels[dataset.indices]
    if not isinstance(dataset, Images):  # in memory already
        return decode(dataset, transform, workers)
    return cached(dataset, what, lambda: decode(dataset, transform, workers))


class WholeImage:
    """PIL image to uint8 array (C, size, size), resized.

    Raises:
        OddSizeError: the image is not square.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.resize = transforms.Resize(size)
        self.to_numpy = ToNumpy()

    def __call__(self, image):
        if image.width != image.height:
            raise OddSizeError(f"an image has {image.width} x {image.height} pixels")
        return self.to_numpy(self.resize(image))


class HeldBatches:
    """Batches of images in memory: those of ``indices``, in their order and unchanged."""

    def __init__(self, images: Tensor, labels: Tensor, indices: Sequence[int], batch_size: int) -> None:
        self.images = images
        self.labels = labels
        self.indices = indices
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.indices), self.batch_size):
            part = torch.tensor(self.indices[start : start + self.batch_size])
            yield self.images[part], self.labels[part]


class KeptBatches:
    """The batches of another loader, which is read once; after that they stay on the device."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self.batches: list[tuple[Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.batches is not None:
            yield from self.batches
            return
        batches = []
        for images, labels in self.loader:
            batches.append((images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)))
            yield batches[-1]
        self.batches = batches


class InMemoryLoader:
    """Augmented batches of a dataset in memory, in the order of ``batches``.

    The shift and the flip of an image are functions of (seed, epoch, index, repeat), drawn for a whole epoch at once
    from a counter-based generator. They are copied to the device when the epoch begins: no batch waits for a copy.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, or (N, C) float32.
        batches: which images, in which order.
        padding: largest shift in pixels; pixels from outside the image are black.
        hflip: probability of a mirror image.
        seed: of the augmentation.
        device: where the batches, and from now on the dataset, live.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batches: ShardedBatches,
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
        height, width = images.shape[2:]
        self.rows = torch.arange(height, device=device)
        self.columns = torch.arange(width, device=device)
        self.mirrored = self.columns.flip(0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        keys = self.batches.keys()
        index = self._upload(keys[:, 1])
        shifts, flips = self._draw(keys)
        start = 0
        for size in self.batches.sizes():
            part = slice(start, start + size)
            images = self.images.index_select(0, index[part])
            if shifts is not None and flips is not None:
                images = self._augment(images, shifts[part], flips[part])
            yield images, self.labels.index_select(0, index[part])
            start += size

    def _draw(self, keys: np.ndarray) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Shifts (M, 2) int64 from 0 to twice the padding, and flips (M, 1) bool; None without augmentation."""
        if not self.padding and not self.hflip:
            return None, None
        draws = uniforms(self.seed, keys.astype(np.uint64), 3)
        shifts = (draws[:, :2] * (2 * self.padding + 1)).astype(np.int64)
        return self._upload(shifts), self._upload(draws[:, 2:] < self.hflip)

    def _augment(self, images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        rows = shifts[:, :1] + self.rows
        columns = shifts[:, 1:] + torch.where(flips, self.mirrored, self.columns)
        padded = F.pad(images, (self.padding,) * 4)
        # one gather of flat positions instead of four index tensors that broadcast
        flat = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(num, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, flat).view(num, channels, height, width)

    def _upload(self, array: np.ndarray) -> Tensor:
        """Copy to the device; to a GPU from pinned memory, so that the host does not wait."""
        tensor, device = torch.from_numpy(np.ascontiguousarray(array)), self.images.device
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


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
