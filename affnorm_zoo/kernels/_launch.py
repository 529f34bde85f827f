"""Launch constants of the kernels. Not tuned on a GPU yet: they follow from the memory system as described."""

import torch
from torch import Tensor

# Elements a program holds at once. 4096 float32 values in 4 warps are 32 registers a lane, which is all that a lane has
# at full occupancy; with a second operand of the same size half of the occupancy is left.
TILE = 4096
NUM_WARPS = 4
# The contiguous axis of a tile spans at least a 128-byte line of 16-bit values.
MIN_CONTIGUOUS = 64


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
