"""Triton twins of :mod:`affnorm_zoo.ops.passes`, each one read of its inputs and one write of its outputs.

A tensor is an image (N, C, H, W) of any strides. Programs run over the N·H·W positions in tiles of
(positions, channels); the maps that a group's channels share are (N, groups, H, W), contiguous, in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.kernels._launch import NUM_WARPS, tile_shape

ACTIVATION_CODES = {"none": 0, "relu": 1, "leaky_relu": 2}
_NOTHING, _OUTPUT, _INNER, _PROBE = 0, 1, 2, 3


@triton.jit
def _positions(i_m, M, H, W, BLOCK_M: tl.constexpr):
    """Image, row and column of a block of positions, and which of them exist."""
    o_m = i_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # positions times channels can pass 2³¹
    o_n = o_m // (H * W)
    return o_m, o_n, o_m // W % H, o_m % W, o_m < M


@triton.jit
def _square_sum_kernel(x, out, M, H, W, GROUP_C, sn, sc, sh, sw, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[n, g, p] = Σ_c x[n, g·GROUP_C + c, p]²."""
    i_g = tl.program_id(1)
    _, o_n, o_h, o_w, m_m = _positions(tl.program_id(0), M, H, W, BLOCK_M)
    base = o_n * sn + o_h * sh + o_w * sw
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, GROUP_C, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask = m_m[:, None] & (o_c < GROUP_C)[None, :]
        offset = base[:, None] + (i_g * GROUP_C + o_c)[None, :].to(tl.int64) * sc
        b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        b_sum += tl.sum(b_x * b_x, axis=1)
    tl.store(out + ((o_n * tl.num_programs(1) + i_g) * H + o_h) * W + o_w, b_sum, mask=m_m)


@triton.jit
def _scale_output_kernel(
    y, factor, bias, M, H, W, C, GROUP_C, sn, sc, sh, sw, slope,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y[n, c, p] = act(y[n, c, p] · factor[n, c // GROUP_C, p] + bias[c])."""
    _, o_n, o_h, o_w, m_m = _positions(tl.program_id(0), M, H, W, BLOCK_M)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = m_m[:, None] & (o_c < C)[None, :]
    offset = (o_n * sn + o_h * sh + o_w * sw)[:, None] + o_c[None, :].to(tl.int64) * sc
    o_factor = ((o_n[:, None] * (C // GROUP_C) + (o_c // GROUP_C)[None, :]) * H + o_h[:, None]) * W + o_w[:, None]
    b_z = tl.load(y + offset, mask=mask, other=0.0).to(tl.float32) * tl.load(factor + o_factor, mask=mask, other=0.0)
    if HAS_BIAS:
        b_z += tl.load(bias + o_c, mask=o_c < C, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION == 1:
        b_z = tl.maximum(b_z, 0.0)
    if ACTIVATION == 2:
        b_z = tl.where(b_z > 0, b_z, b_z * slope)
    tl.store(y + offset, b_z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _scale_cotangent_kernel(
    dz, factor, other, vector, h, s, M, H, W, GROUP_C,
    dz_n, dz_c, dz_h, dz_w, other_n, other_c, other_h, other_w, h_n, h_c, h_h, h_w, slope,
    MODE: tl.constexpr, HAS_VECTOR: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = act'(other) dz;  h = g · factor;  s = Σ_c (dz other - g vector), Σ_c h other, or Σ_c h vector, by MODE."""
    i_g = tl.program_id(1)
    _, o_n, o_h, o_w, m_m = _positions(tl.program_id(0), M, H, W, BLOCK_M)
    o_map = ((o_n * tl.num_programs(1) + i_g) * H + o_h) * W + o_w
    b_factor = tl.load(factor + o_map, mask=m_m, other=0.0)
    dz_base = o_n * dz_n + o_h * dz_h + o_w * dz_w
    other_base = o_n * other_n + o_h * other_h + o_w * other_w
    h_base = o_n * h_n + o_h * h_h + o_w * h_w
    b_s = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, GROUP_C, BLOCK_C):
        o_in_group = start + tl.arange(0, BLOCK_C)
        m_c = o_in_group < GROUP_C
        mask = m_m[:, None] & m_c[None, :]
        o_c = (i_g * GROUP_C + o_in_group).to(tl.int64)
        b_g = tl.load(dz + dz_base[:, None] + o_c[None, :] * dz_c, mask=mask, other=0.0).to(tl.float32)
        if MODE == 1 or MODE == 2:
            b_other = tl.load(other + other_base[:, None] + o_c[None, :] * other_c, mask=mask, other=0.0)
            b_other = b_other.to(tl.float32)
        if MODE == 1:
            b_s += tl.sum(b_g * b_other, axis=1)
            if ACTIVATION == 1:
                b_g = tl.where(b_other > 0, b_g, 0.0)
            if ACTIVATION == 2:
                b_g = tl.where(b_other > 0, b_g, b_g * slope)
        b_h = b_g * b_factor[:, None]
        if HAS_VECTOR:
            b_vector = tl.load(vector + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
            if MODE == 1:
                b_s -= tl.sum(b_g * b_vector, axis=1)
            if MODE == 3:
                b_s += tl.sum(b_h * b_vector, axis=1)
        if MODE == 2:
            b_s += tl.sum(b_h * b_other, axis=1)
        tl.store(h + h_base[:, None] + o_c[None, :] * h_c, b_h.to(h.dtype.element_ty), mask=mask)
    if MODE != 0:
        tl.store(s + o_map, b_s, mask=m_m)


@triton.jit
def _correct_kernel(
    dx, x, factor, extra, M, H, W, GROUP_C, dx_n, dx_c, dx_h, dx_w, x_n, x_c, x_h, x_w,
    POINTWISE: tl.constexpr, HAS_EXTRA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx -= x · factor;  POINTWISE: dx -= x · factor · (Σ_c x dx + extra)."""
    i_g = tl.program_id(1)
    _, o_n, o_h, o_w, m_m = _positions(tl.program_id(0), M, H, W, BLOCK_M)
    o_map = ((o_n * tl.num_programs(1) + i_g) * H + o_h) * W + o_w
    dx_base = o_n * dx_n + o_h * dx_h + o_w * dx_w
    x_base = o_n * x_n + o_h * x_h + o_w * x_w
    b_factor = tl.load(factor + o_map, mask=m_m, other=0.0)
    if POINTWISE:
        b_s = tl.zeros((BLOCK_M,), tl.float32)
        if HAS_EXTRA:
            b_s += tl.load(extra + o_map, mask=m_m, other=0.0)
        for start in range(0, GROUP_C, BLOCK_C):
            o_in_group = start + tl.arange(0, BLOCK_C)
            mask = m_m[:, None] & (o_in_group < GROUP_C)[None, :]
            o_c = (i_g * GROUP_C + o_in_group).to(tl.int64)[None, :]
            b_x = tl.load(x + x_base[:, None] + o_c * x_c, mask=mask, other=0.0).to(tl.float32)
            b_dx = tl.load(dx + dx_base[:, None] + o_c * dx_c, mask=mask, other=0.0).to(tl.float32)
            b_s += tl.sum(b_x * b_dx, axis=1)
        b_factor = b_factor * b_s
    # in POINTWISE the second read of the tile comes from the cache: a program owns its positions
    for start in range(0, GROUP_C, BLOCK_C):
        o_in_group = start + tl.arange(0, BLOCK_C)
        mask = m_m[:, None] & (o_in_group < GROUP_C)[None, :]
        o_c = (i_g * GROUP_C + o_in_group).to(tl.int64)[None, :]
        b_x = tl.load(x + x_base[:, None] + o_c * x_c, mask=mask, other=0.0).to(tl.float32)
        o_dx = dx_base[:, None] + o_c * dx_c
        b_dx = tl.load(dx + o_dx, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + o_dx, (b_dx - b_x * b_factor[:, None]).to(dx.dtype.element_ty), mask=mask)


def square_sum(x: Tensor, groups: int) -> Tensor:
    """Twin of :func:`affnorm_zoo.ops.passes.square_sum`."""
    n, channels, height, width = x.shape
    out = torch.empty((n, groups, height, width), device=x.device, dtype=torch.float32)
    block_m, block_c = tile_shape(x, channels // groups)
    positions = n * height * width
    _square_sum_kernel[(triton.cdiv(positions, block_m), groups)](
        x, out, positions, height, width, channels // groups, *x.stride(),
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=NUM_WARPS,
    )  # fmt: skip
    return out


def scale_output(y: Tensor, factor: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Twin of :func:`affnorm_zoo.ops.passes.scale_output`."""
    n, channels, height, width = y.shape
    block_m, block_c = tile_shape(y, channels)
    positions = n * height * width
    _scale_output_kernel[(triton.cdiv(positions, block_m), triton.cdiv(channels, block_c))](
        y, factor.contiguous(), bias, positions, height, width, channels, channels // factor.shape[1], *y.stride(),
        LEAKY_SLOPE, HAS_BIAS=bias is not None, ACTIVATION=ACTIVATION_CODES[activation],
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y


def scale_cotangent(
    dz: Tensor,
    factor: Tensor,
    *,
    activation: str = "none",
    output: Tensor | None = None,
    inner: Tensor | None = None,
    outer_bias: Tensor | None = None,
    probe: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Twin of :func:`affnorm_zoo.ops.passes.scale_cotangent`."""
    n, channels, height, width = dz.shape
    groups = factor.shape[1]
    other = output if output is not None else inner
    mode = _OUTPUT if output is not None else _INNER if inner is not None else _PROBE if probe is not None else _NOTHING
    vector = probe if mode == _PROBE else outer_bias if mode == _OUTPUT else None
    h = torch.empty_like(dz)
    s = None if mode == _NOTHING else torch.empty_like(factor, memory_format=torch.contiguous_format)
    block_m, block_c = tile_shape(dz, channels // groups)
    positions = n * height * width
    _scale_cotangent_kernel[(triton.cdiv(positions, block_m), groups)](
        dz, factor.contiguous(), other, vector, h, s, positions, height, width, channels // groups,
        *dz.stride(), *(other if other is not None else dz).stride(), *h.stride(), LEAKY_SLOPE,
        MODE=mode, HAS_VECTOR=vector is not None, ACTIVATION=ACTIVATION_CODES[activation],
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=NUM_WARPS,
    )  # fmt: skip
    if outer_bias is None:
        return h, s, None
    g = dz
    if output is not None:
        g = torch.where(output > 0, dz, dz * (LEAKY_SLOPE if activation == "leaky_relu" else 0.0))
    return h, s, g.sum((0, 2, 3), dtype=torch.float32).to(dz.dtype)


def correct_pointwise(dx: Tensor, x: Tensor, inv_square: Tensor, extra: Tensor | None) -> None:
    """Twin of :func:`affnorm_zoo.ops.passes.correct_pointwise`."""
    _launch_correct(dx, x, inv_square, extra, pointwise=True)


def correct(dx: Tensor, x: Tensor, factor: Tensor) -> None:
    """Twin of :func:`affnorm_zoo.ops.passes.correct`."""
    _launch_correct(dx, x, factor, None, pointwise=False)


def _launch_correct(dx: Tensor, x: Tensor, factor: Tensor, extra: Tensor | None, pointwise: bool) -> None:
    n, channels, height, width = dx.shape
    groups = factor.shape[1]
    block_m, block_c = tile_shape(dx, channels // groups)
    positions = n * height * width
    _correct_kernel[(triton.cdiv(positions, block_m), groups)](
        dx, x, factor.contiguous(), None if extra is None else extra.contiguous(), positions, height, width,
        channels // groups, *dx.stride(), *x.stride(), POINTWISE=pointwise, HAS_EXTRA=extra is not None,
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=NUM_WARPS,
    )  # fmt: skip
