"""A matrix product with the normaliser in its epilogue: one kernel, where the library's product needs two more passes.

    z[p, n] = act(c r_p (Σ_k x[p, k] w[n, k] + κ b[n])),   r_p = 1/√(Σ_k x[p, k]² + κ²)      (norm_like: + b[n] last)

The squares are summed from the tiles of x that the product reads anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.kernels._activation import ACTIVATION_CODES, activate
from affnorm_zoo.kernels._launch import ProductTile, launch, layout_of
from affnorm_zoo.kernels._tiles import offsets, pixels_of_program
from affnorm_zoo.kernels.passes import bias_kind


@triton.jit
def _product_kernel(
    x, weight, bias, z, factor, P, C_OUT, C_IN, w_out, w_in, scale, kappa, slope,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """One tile of (pixels, output channels). Programs that share a tile of pixels are adjacent."""
    tiles_out = tl.cdiv(C_OUT, BLOCK_OUT)
    i_out = tl.program_id(0) % tiles_out
    i_n, o_p, m_p = pixels_of_program(tl.program_id(0) // tiles_out, P, CHANNELS_LAST, BLOCK_P)
    o_out = i_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    m_out = o_out < C_OUT

    b_product = tl.zeros((BLOCK_P, BLOCK_OUT), tl.float32)
    b_squares = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, C_IN, BLOCK_IN):
        o_in = start + tl.arange(0, BLOCK_IN)
        m_in = o_in < C_IN
        o_x = offsets(i_n, o_p[:, None], o_in[None, :], P, C_IN, CHANNELS_LAST)
        b_x = tl.load(x + o_x, mask=m_p[:, None] & m_in[None, :], other=0.0)
        o_weight = o_out[None, :] * w_out + o_in[:, None] * w_in
        b_weight = tl.load(weight + o_weight, mask=m_in[:, None] & m_out[None, :], other=0.0)
        b_product = tl.dot(b_x, b_weight, b_product)
        b_wide = b_x.to(tl.float32)
        b_squares += tl.sum(b_wide * b_wide, axis=1)

    b_length = b_squares + kappa * kappa
    b_divisor = tl.where(kappa > 0, b_length, tl.maximum(b_length, 1e-24))  # SHORTEST² of scale.py
    b_factor = tl.where(b_length > 0, scale * tl.rsqrt(b_divisor), 0.0)
    if BIAS != 0:
        b_bias = tl.load(bias + o_out, mask=m_out, other=0.0).to(tl.float32)[None, :]
    if BIAS == 1:
        b_product += kappa * b_bias
    b_z = b_product * b_factor[:, None]
    if BIAS == 2:
        b_z += b_bias
    b_z = activate(b_z, slope, ACTIVATION)
    o_z = offsets(i_n, o_p[:, None], o_out[None, :], P, C_OUT, CHANNELS_LAST)
    tl.store(z + o_z, b_z.to(z.dtype.element_ty), mask=m_p[:, None] & m_out[None, :])
    if i_out == 0:
        tl.store(factor + offsets(i_n, o_p, 0, P, 1, CHANNELS_LAST), b_factor, mask=m_p)


def normalized_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c: float,
    kappa: float,
    norm_like: bool,
    activation: str,
    tile: ProductTile,
) -> tuple[Tensor, Tensor]:
    """Twin of the forward of :mod:`affnorm_zoo.ops.linear` and, for 1x1 kernels, :mod:`affnorm_zoo.ops.patch_norm`.

    Args:
        x: rows (N, C_in) or images (N, C_in, H, W), in float16 or bfloat16.
        weight: (C_out, C_in).
        others: as in these ops.

    Returns:
        z, (N, C_out) or (N, C_out, H, W) in x's layout, and the factor c r per pixel, (N, 1, H, W).
    """
    images = x[:, :, None, None] if x.dim() == 2 else x
    layout, c_out = layout_of(images), weight.shape[0]
    dense = layout.dense(images)
    z = torch.empty(
        (x.shape[0], c_out, *images.shape[2:]), device=x.device, dtype=x.dtype, memory_format=layout.memory_format
    )
    factor = layout.new_map(images, 1)
    programs = layout.images * triton.cdiv(layout.pixels, tile.positions) * triton.cdiv(c_out, tile.outputs)
    launch(
        _product_kernel, (programs,), dense, weight, bias, z, factor, layout.pixels, c_out, layout.channels,
        *weight.stride(), c, 0.0 if norm_like else kappa, LEAKY_SLOPE,
        BIAS=bias_kind(bias, None if norm_like else kappa), ACTIVATION=ACTIVATION_CODES[activation],
        CHANNELS_LAST=layout.channels_last, BLOCK_P=tile.positions, BLOCK_OUT=tile.outputs, BLOCK_IN=tile.inputs,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return z.flatten(1) if x.dim() == 2 else z, factor
