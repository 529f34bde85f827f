"""Launch constants of the kernels. Not tuned on a GPU yet: they follow from the memory system as described."""

from typing import NamedTuple

import torch
from torch import Tensor

# Elements a program holds at once. 4096 float32 values in 4 warps are 32 registers a lane, which is all that a lane has
# at full occupancy; with a second operand of the same size half of the occupancy is left.
TILE = 4096
NUM_WARPS = 4
# The contiguous axis of a tile spans at least a 128-byte line of 16-bit values.
MIN_CONTIGUOUS = 64


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


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def tile_shape(x: Tensor, channels: int) -> tuple[int, int]:
    """(positions, channels) of a tile for an image tensor whose programs run over ``channels`` of it.

    The axis that is contiguous in memory gets the longer side, as far as there is that much of it.
    """
    channels = next_power_of_2(channels)
    if x.stride(1) == 1:
        block_c = min(channels, 512)
        return max(TILE // block_c, 1), block_c
    block_c = min(channels, TILE // (4 * MIN_CONTIGUOUS))
    return TILE // block_c, block_c


def can_launch(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: on one CUDA device, in float32 or narrower, and not empty."""
    return all(
        t is None or (t.is_cuda and t.dtype in (torch.float32, torch.bfloat16, torch.float16) and t.numel() > 0)
        for t in tensors
    )
