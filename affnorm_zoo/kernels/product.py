"""A matrix product with the normaliser in its epilogue: one kernel where the library's product needs two passes more.

    z[p, n] = act(c r_p (Σ_k x[p, k] w[n, k] + κ b[n])),   r_p = 1/√(Σ_k x[p, k]² + κ²)      (norm_like: + b[n] last)

The squares are summed from the tiles of x that the product reads anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from affnorm_zoo.functional.activation import LEAKY_SLOPE
from affnorm_zoo.kernels._launch import ProductTile
from affnorm_zoo.kernels.passes import ACTIVATION_CODES, _positions

_NO_BIAS, _INNER_BIAS, _OUTER_BIAS = 0, 1, 2


@triton.jit
def _product_kernel(
    x, weight, bias, z, factor, M, H, W, C_OUT, C_IN,
    x_n, x_c, x_h, x_w, w_out, w_in, z_n, z_c, z_h, z_w, scale, kappa, slope,
    BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of (positions, output channels); the programs of one tile of positions follow each other."""
    tiles_n = tl.cdiv(C_OUT, BLOCK_N)
    i_m, i_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    _, o_n, o_h, o_w, m_m = _positions(i_m, M, H, W, BLOCK_M)
    x_base = o_n * x_n + o_h * x_h + o_w * x_w
    o_out = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_out = o_out < C_OUT

    b_product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    b_squares = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, C_IN, BLOCK_K):
        o_in = start + tl.arange(0, BLOCK_K)
        m_in = o_in < C_IN
        b_x = tl.load(x + x_base[:, None] + o_in[None, :].to(tl.int64) * x_c, mask=m_m[:, None] & m_in, other=0.0)
        o_weight = o_out[None, :] * w_out + o_in[:, None] * w_in
        b_weight = tl.load(weight + o_weight, mask=m_in[:, None] & m_out, other=0.0)
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
    if ACTIVATION == 1:
        b_z = tl.maximum(b_z, 0.0)
    if ACTIVATION == 2:
        b_z = tl.where(b_z > 0, b_z, b_z * slope)
    z_base = o_n * z_n + o_h * z_h + o_w * z_w
    o_z = z_base[:, None] + o_out[None, :].to(tl.int64) * z_c
    tl.store(z + o_z, b_z.to(z.dtype.element_ty), mask=m_m[:, None] & m_out)
    if i_n == 0:
        tl.store(factor + (o_n * H + o_h) * W + o_w, b_factor, mask=m_m)


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
        others: as there.

    Returns:
        z, (N, C_out) or (N, C_out, H, W) in x's layout, and the factor c r of every pixel, (N, 1, H, W).
    """
    rows = x.dim() == 2
    n, c_in, height, width = (*x.shape, 1, 1) if rows else x.shape
    c_out = weight.shape[0]
    size = (n, c_out) if rows else (n, c_out, height, width)
    layout = torch.channels_last if x.stride(1) == 1 and not rows else torch.contiguous_format
    z = torch.empty(size, device=x.device, dtype=x.dtype, memory_format=layout)
    one_pixel = (0, 0) if rows else ()  # strides that are not used
    factor = torch.empty((n, 1, height, width), device=x.device, dtype=torch.float32)
    kind = _NO_BIAS if bias is None else _OUTER_BIAS if norm_like else _INNER_BIAS
    positions = n * height * width
    _product_kernel[(triton.cdiv(positions, tile.positions) * triton.cdiv(c_out, tile.outputs),)](
        x, weight, bias, z, factor, positions, height, width, c_out, c_in,
        *x.stride(), *one_pixel, *weight.stride(), *z.stride(), *one_pixel, c, 0.0 if norm_like else kappa, LEAKY_SLOPE,
        BIAS=kind, ACTIVATION=ACTIVATION_CODES[activation],
        BLOCK_M=tile.positions, BLOCK_N=tile.outputs, BLOCK_K=tile.inputs,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return z, factor
