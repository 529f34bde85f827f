"""How the kernels are launched: tiles, warps, device. Comments derive the numbers from the memory system."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements of each operand that a program holds. In 4 warps that is 32 registers per lane. Two operands and their
# addresses then fit into 128 registers per lane, with which a multiprocessor keeps a quarter of its occupancy.
TILE = 4096
NUM_WARPS = 4
# The same if no run of a tile is known to start at a multiple of 16 elements: every element then needs an address.
SCALAR_TILE = TILE // 4
# Longest contiguous runs of a tile. 512 channels of 16 bits are 16 bytes per lane of two warps; 256 pixels leave 16
# channels to a tile, each of them four lines of 128 bytes.
MOST_CHANNELS = 512
MOST_PIXELS = 256
# The same if a program also writes a sum over its pixels for every channel. Such a sum has 4 bytes, so with 64 pixels
# of 2 bytes the sums are a thirty-second of the tensor. The remaining 64 channels are still a line of 128 bytes.
SUMMED_CHANNELS = TILE // 64


class Layout(NamedTuple):
    """An image tensor as the kernels see it: dense, with its channels adjacent (NHWC) or one plane apart (NCHW).

    With ``channels_last`` the pixels of all images are rows of one image. No address then needs a division.
    """

    channels_last: bool
    images: int
    pixels: int
    channels: int

    def dense(self, x: Tensor) -> Tensor:
        """A tensor of these images, or a map over them: itself if its memory has this order, otherwise a copy."""
        return x.contiguous(memory_format=self.memory_format)

    def new_map(self, x: Tensor, groups: int) -> Tensor:
        """An empty map with one number per pixel of x and group, (N, groups, H, W) in float32."""
        size = (x.shape[0], groups, *x.shape[2:])
        return torch.empty(size, device=x.device, dtype=torch.float32, memory_format=self.memory_format)

    def blocks(self, tile: "Tile") -> int:
        """Number of programs that cover every pixel."""
        return self.images * -(-self.pixels // tile.pixels)

    @property
    def memory_format(self) -> torch.memory_format:
        """The order of the axes in memory, as torch's ``memory_format``."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Tile(NamedTuple):
    """(pixels, groups, channels per group) of one program."""

    pixels: int
    groups: int
    channels: int


def layout_of(x: Tensor) -> Layout:
    """The layout of x (N, C, H, W), or the closer layout if x is strided."""
    n, channels, height, width = x.shape
    as_rows = x.is_contiguous(memory_format=torch.channels_last) or (not x.is_contiguous() and x.stride(1) == 1)
    images, pixels = (1, n * height * width) if as_rows else (n, height * width)
    return Layout(as_rows, images, pixels, channels)


def tile_of(layout: Layout, groups: int, most_channels: int = MOST_CHANNELS) -> Tile:
    """The tile of a program. The contiguous axis gets the longer side, up to its length.

    Args:
        layout: of the images.
        groups: groups of channels that share a map. Adjacent small groups go into one tile, so that it has full lines.
        most_channels: the longest run of channels if channels are adjacent.
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
    """Run a kernel on the device of its first tensor. Triton itself uses the current device, which may differ."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **constants)


def can_launch(*tensors: Tensor | None) -> bool:
    """Whether the kernels support these tensors: on one CUDA device, in float32 or narrower, and not empty."""
    return all(
        t is None or (t.is_cuda and t.dtype in (torch.float32, torch.bfloat16, torch.float16) and t.numel() > 0)
        for t in tensors
    )


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()
