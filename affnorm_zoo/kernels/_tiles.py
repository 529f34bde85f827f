"""Address arithmetic that all kernels share.

An image has P pixels and C channels, in GROUPS groups of GROUP_C channels. GROUP_C is known to the compiler, so it sees
how small groups follow each other. With CHANNELS_LAST, the pixels of all images are one run. Otherwise program_id(0)
counts images and, within an image, blocks of pixels. No address needs the row or the column of a pixel, so only two
scalars per program are divided.
"""

import triton
import triton.language as tl


@triton.jit
def pixels_of_program(i_block, P, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Image and pixels (BLOCK_P,) of a program, and the mask of existing pixels."""
    if CHANNELS_LAST:
        i_n = 0
        o_p = i_block.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)  # pixels times channels can exceed 2³¹
    else:
        blocks = tl.cdiv(P, BLOCK_P)
        i_n = (i_block // blocks).to(tl.int64)  # images times their size too
        o_p = i_block % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    return i_n, o_p, o_p < P


@triton.jit
def groups_of_program(GROUPS, BLOCK_G: tl.constexpr):
    """Groups (BLOCK_G,) of a program, and the mask of existing groups."""
    o_g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    return o_g, o_g < GROUPS


@triton.jit
def offsets(i_n, o_p, o_c, P, C, CHANNELS_LAST: tl.constexpr):
    """Offsets of the channels o_c of the pixels o_p of an image, broadcast against each other."""
    if CHANNELS_LAST:
        offset = o_p * C + o_c
    else:
        offset = (i_n * C + o_c) * P + o_p
    return offset


@triton.jit
def channels_of_tile(o_g, m_g, start, GROUP_C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels (BLOCK_G, BLOCK_C) of a tile, and the mask of existing channels."""
    o_in_group = start + tl.arange(0, BLOCK_C)
    return o_g[:, None] * GROUP_C + o_in_group[None, :], m_g[:, None] & (o_in_group < GROUP_C)[None, :]
