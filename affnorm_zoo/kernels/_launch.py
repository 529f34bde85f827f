"""How the kernels are launched: tiles, warps, device. The numbers follow from the memory system, as described."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements that a program holds of each operand. In 4 warps that is 32 registers per lane; two operands and their
# addresses then fit into the 128 registers that leave a lane a quarter of its multiprocessor's occupancy.
TILE = 4096
NUM_WARPS = 4
# The same where no run of a tile is known to start at a multiple of 16 elements: every element then has an address.
SCALAR_TILE = TILE // 4
# Longest contiguous runs of a tile. 512 channels of 16 bits are 16 bytes per lane of two warps; 256 pixels leave 16
# channels to a tile, each of them four lines of 128 bytes.
MOST_CHANNELS = 512
MOST_PIXELS = 256
# Where a program also leaves a sum over its pixels for every channel: such a sum has 4 bytes, so 64 pixels of 2 bytes
# keep the sums at a thirty-second of the tensor, and the 64 channels that remain are still a line of 128 bytes.
SUMMED_CHANNELS = TILE // 64


class ProductTile(NamedTuple):
    """What one program of the matrix product holds: a tile of its output, read ``inputs`` channels at a time."""

    positions: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the tiles in flight, in 16-bit values."""
        return 2 * self.num_stages * self.inputs * (self.positions + self.outputs)


# Candidates, of which the fastest is chosen by measuring. The accumulator takes 64 or 128 registers a lane; 64 input
# channels are a 128-byte line; the stages fill, but for the last tile, about 96 KiB, which every GPU since 2020 grants.
PRODUCT_TILES = (
    ProductTile(128, 128, 64, num_warps=8, num_stages=3),
    ProductTile(128, 64, 64, num_warps=4, num_stages=4),
    ProductTile(64, 64, 64, num_warps=4, num_stages=4),
)


class Layout(NamedTuple):
    """An image tensor as the kernels see it: dense, its channels either next to each other or planes apart.

    With ``channels_last`` all pixels of all images are rows of one image, whose length is their distance: nothing then
    needs to be divided to find an address.
    """

    channels_last: bool
    images: int
    pixels: int
    channels: int

    def dense(self, x: Tensor) -> Tensor:
        """A tensor of these images, or a map over them, itself where its memory has this order, else a copy."""
        return x.contiguous(memory_format=self.memory_format)

    def new_map(self, x: Tensor, groups: int) -> Tensor:
        """Room for one number per pixel of x and group, (N, groups, H, W) in float32."""
        size = (x.shape[0], groups, *x.shape[2:])
        return torch.empty(size, device=x.device, dtype=torch.float32, memory_format=self.memory_format)

    def blocks(self, tile: "Tile") -> int:
        """Programs that it takes to see every pixel."""
        return self.images * -(-self.pixels // tile.pixels)

    @property
    def memory_format(self) -> torch.memory_format:
        """The order of the axes in memory, as torch calls it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Tile(NamedTuple):
    """(pixels, groups, channels of a group) of one program."""

    pixels: int
    groups: int
    channels: int


def layout_of(x: Tensor) -> Layout:
    """The layout that is x's own, or the nearer one where x is strided; x is (N, C, H, W)."""
    n, channels, height, width = x.shape
    as_rows = x.is_contiguous(memory_format=torch.channels_last) or (not x.is_contiguous() and x.stride(1) == 1)
    images, pixels = (1, n * height * width) if as_rows else (n, height * width)
    return Layout(as_rows, images, pixels, channels)


def tile_of(layout: Layout, groups: int, most_channels: int = MOST_CHANNELS) -> Tile:
    """The tile of a program: the contiguous axis gets the longer side, as far as there is that much of it.

    Args:
        layout: of the images.
        groups: of channels that share a map. Neighbouring small groups go into one tile, so that it has whole lines.
        most_channels: how long a run of channels may be where they are next to each other.
    """
    in_group = layout.channels // groups
    block_c, block_g = next_power_of_2(in_group), next_power_of_2(groups)
    if layout.channels_last:
        is_run = groups == 1 or in_group == block_c  # whether a tile of several groups has no gaps
        size = TILE if is_run and layout.channels % 16 == 0 else SCALAR_TILE
        block_c = min(block_c, most_channels)
        block_g = min(block_g, most_channels // block_c)
        block_p = min(max(size // (block_c * block_g), 1), next_power_of_2(layout.pixels))
    else:
        size = TILE if layout.pixels % 16 == 0 else SCALAR_TILE
        block_p = min(next_power_of_2(layout.pixels), MOST_PIXELS)
        block_c = min(block_c, size // block_p)
        block_g = min(block_g, size // (block_p * block_c))
    return Tile(block_p, block_g, block_c)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor. Triton itself takes the current one, which may be another."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **constants)


def can_launch(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: on one CUDA device, in float32 or narrower, and not empty."""
    return all(
        t is None or (t.is_cuda and t.dtype in (torch.float32, torch.bfloat16, torch.float16) and t.numel() > 0)
        for t in tensors
    )


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()
