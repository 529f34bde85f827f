"""The kernels of the element-wise passes. Each reads its inputs once and writes its outputs once.

A program has a tile of (pixels, groups, channels per group) and loops over the channels of its groups.
"""

import triton
import triton.language as tl

from affnorm_zoo.kernels._activation import activate, activation_gradient
from affnorm_zoo.kernels._tiles import channels_of_tile, groups_of_program, offsets, pixels_of_program

# BIAS: where the bias is added; OTHER: the operand next to the cotangent; SUM: the sum that is the bias's gradient
NO_BIAS, INNER_BIAS, OUTER_BIAS = 0, 1, 2
NOTHING, OUTPUT, INNER = 0, 1, 2
NO_SUM, SUM_H, SUM_G = 0, 1, 2


@triton.jit
def square_sum_kernel(
    x, out, P, GROUPS,
    GROUP_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[n, g, p] = Σ_c x[n, g·GROUP_C + c, p]²."""
    i_n, o_p, m_p = pixels_of_program(tl.program_id(0), P, CHANNELS_LAST, BLOCK_P)
    o_g, m_g = groups_of_program(GROUPS, BLOCK_G)
    o_map = offsets(i_n, o_p[:, None], o_g[None, :], P, GROUPS, CHANNELS_LAST)
    m_map = m_p[:, None] & m_g[None, :]
    # summed over channels once, behind the loop: warps that share a pixel would wait for each other in every round
    b_squares = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_C), tl.float32)
    for start in range(0, GROUP_C, BLOCK_C):
        o_c, m_c = channels_of_tile(o_g, m_g, start, GROUP_C, BLOCK_C)
        offset = offsets(i_n, o_p[:, None, None], o_c[None, :, :], P, GROUPS * GROUP_C, CHANNELS_LAST)
        mask = m_p[:, None, None] & m_c[None, :, :]
        b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        b_squares += b_x * b_x
    tl.store(out + o_map, tl.sum(b_squares, axis=2), mask=m_map)


@triton.jit
def scale_output_kernel(
    y, factor, bias, out, P, GROUPS, kappa, slope, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    GROUP_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[n, c, p] = act((y[n, c, p] + κ bias[c]) · factor[n, g, p]), or act(y · factor + bias), by BIAS."""
    i_n, o_p, m_p = pixels_of_program(tl.program_id(0), P, CHANNELS_LAST, BLOCK_P)
    o_g, m_g = groups_of_program(GROUPS, BLOCK_G)
    o_map = offsets(i_n, o_p[:, None], o_g[None, :], P, GROUPS, CHANNELS_LAST)
    m_map = m_p[:, None] & m_g[None, :]
    b_factor = tl.load(factor + o_map, mask=m_map, other=0.0)[:, :, None]
    for start in range(0, GROUP_C, BLOCK_C):
        o_c, m_c = channels_of_tile(o_g, m_g, start, GROUP_C, BLOCK_C)
        offset = offsets(i_n, o_p[:, None, None], o_c[None, :, :], P, GROUPS * GROUP_C, CHANNELS_LAST)
        mask = m_p[:, None, None] & m_c[None, :, :]
        b_z = tl.load(y + offset, mask=mask, other=0.0).to(tl.float32)
        if BIAS != 0:
            b_bias = tl.load(bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :, :]
        if BIAS == 1:
            b_z += kappa * b_bias
        b_z *= b_factor
        if BIAS == 2:
            b_z += b_bias
        b_z = activate(b_z, slope, ACTIVATION)
        tl.store(out + offset, b_z.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scale_cotangent_kernel(
    dz, factor, other, bias, h, s, sums, P, GROUPS, kappa, slope,
    OTHER: tl.constexpr, BIAS: tl.constexpr, SUM: tl.constexpr, ACTIVATION: tl.constexpr,
    GROUP_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = act'(z) dz;  h = g · factor;  s by OTHER and BIAS;  sums[program, c] = Σ_p h or Σ_p g, by SUM.

    OTHER is the output a = act(z), and s = Σ_c (dz a - g bias), or Σ_c (g a - g bias) for relu6; or the convolution's
    y, and s = Σ_c h (y + κ bias); or nothing, and s = Σ_c h κ bias. Terms with a bias fall away without it, and those
    of y with a bias that is added after the factor.
    """
    i_n, o_p, m_p = pixels_of_program(tl.program_id(0), P, CHANNELS_LAST, BLOCK_P)
    o_g, m_g = groups_of_program(GROUPS, BLOCK_G)
    o_map = offsets(i_n, o_p[:, None], o_g[None, :], P, GROUPS, CHANNELS_LAST)
    m_map = m_p[:, None] & m_g[None, :]
    b_factor = tl.load(factor + o_map, mask=m_map, other=0.0)[:, :, None]
    b_s = tl.zeros((BLOCK_P, BLOCK_G), tl.float32)  # not as in square_sum: it would take too many registers
    for start in range(0, GROUP_C, BLOCK_C):
        o_c, m_c = channels_of_tile(o_g, m_g, start, GROUP_C, BLOCK_C)
        offset = offsets(i_n, o_p[:, None, None], o_c[None, :, :], P, GROUPS * GROUP_C, CHANNELS_LAST)
        mask = m_p[:, None, None] & m_c[None, :, :]
        b_g = tl.load(dz + offset, mask=mask, other=0.0).to(tl.float32)
        if OTHER != 0:
            b_other = tl.load(other + offset, mask=mask, other=0.0).to(tl.float32)
        if BIAS != 0:
            b_bias = tl.load(bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :, :]
        if OTHER == 1:
            b_terms = b_g * b_other
            b_g = activation_gradient(b_g, b_other, slope, ACTIVATION)
            if ACTIVATION == 2:
                b_terms = b_g * b_other
        if OTHER == 2 and ACTIVATION != 0:
            b_z = b_other
            if BIAS == 1:
                b_z += kappa * b_bias
            b_z *= b_factor
            if BIAS == 2:
                b_z += b_bias
            b_g = activation_gradient(b_g, b_z, slope, ACTIVATION)
        b_h = b_g * b_factor
        if OTHER == 1 and BIAS == 2:
            b_terms -= b_g * b_bias
        if OTHER == 2:
            b_terms = b_h * b_other
        if OTHER == 2 and BIAS == 1:
            b_terms += b_h * (kappa * b_bias)
        if OTHER == 0 and BIAS == 1:
            b_terms = b_h * (kappa * b_bias)
        if OTHER != 0 or BIAS == 1:
            b_s += tl.sum(b_terms, axis=2)
        if SUM != 0:
            b_column = tl.sum(b_h, axis=0) if SUM == 1 else tl.sum(b_g, axis=0)
            tl.store(sums + tl.program_id(0).to(tl.int64) * (GROUPS * GROUP_C) + o_c, b_column, mask=m_c)
        tl.store(h + offset, b_h.to(h.dtype.element_ty), mask=mask)
    if OTHER != 0 or BIAS == 1:
        tl.store(s + o_map, b_s, mask=m_map)


@triton.jit
def correct_kernel(
    dx, x, factor, extra, P, GROUPS, POINTWISE: tl.constexpr, HAS_EXTRA: tl.constexpr,
    GROUP_C: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx -= x · factor;  POINTWISE: dx -= x · factor · (Σ_c x dx + extra)."""
    i_n, o_p, m_p = pixels_of_program(tl.program_id(0), P, CHANNELS_LAST, BLOCK_P)
    o_g, m_g = groups_of_program(GROUPS, BLOCK_G)
    o_map = offsets(i_n, o_p[:, None], o_g[None, :], P, GROUPS, CHANNELS_LAST)
    m_map = m_p[:, None] & m_g[None, :]
    b_factor = tl.load(factor + o_map, mask=m_map, other=0.0)
    if POINTWISE:
        b_terms = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_C), tl.float32)
        for start in range(0, GROUP_C, BLOCK_C):
            o_c, m_c = channels_of_tile(o_g, m_g, start, GROUP_C, BLOCK_C)
            offset = offsets(i_n, o_p[:, None, None], o_c[None, :, :], P, GROUPS * GROUP_C, CHANNELS_LAST)
            mask = m_p[:, None, None] & m_c[None, :, :]
            b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
            b_dx = tl.load(dx + offset, mask=mask, other=0.0).to(tl.float32)
            b_terms += b_x * b_dx
        b_s = tl.sum(b_terms, axis=2)
        if HAS_EXTRA:
            b_s += tl.load(extra + o_map, mask=m_map, other=0.0)
        b_factor *= b_s
    # in POINTWISE the second read comes from the cache: a program owns its pixels, and in NHWC they are few
    for start in range(0, GROUP_C, BLOCK_C):
        o_c, m_c = channels_of_tile(o_g, m_g, start, GROUP_C, BLOCK_C)
        offset = offsets(i_n, o_p[:, None, None], o_c[None, :, :], P, GROUPS * GROUP_C, CHANNELS_LAST)
        mask = m_p[:, None, None] & m_c[None, :, :]
        b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        b_dx = tl.load(dx + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + offset, (b_dx - b_x * b_factor[:, :, None]).to(dx.dtype.element_ty), mask=mask)
