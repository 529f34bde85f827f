"""Activations and their derivatives on blocks in registers, by codes that are known when a kernel is compiled."""

import triton
import triton.language as tl

from affnorm_zoo.functional.activation import ACTIVATIONS

ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


@triton.jit
def activate(b_z, slope, ACTIVATION: tl.constexpr):
    """act(z), elementwise and in float32; the codes are those of ACTIVATION_CODES."""
    if ACTIVATION == 1:  # relu
        b_z = tl.maximum(b_z, 0.0)
    if ACTIVATION == 2:  # relu6
        b_z = tl.minimum(tl.maximum(b_z, 0.0), 6.0)
    if ACTIVATION == 3:  # leaky_relu
        b_z = tl.where(b_z > 0, b_z, b_z * slope)
    if ACTIVATION == 4:  # silu
        b_z = b_z * tl.sigmoid(b_z)
    if ACTIVATION == 5:  # hard_swish
        b_z = b_z * (tl.minimum(tl.maximum(b_z + 3.0, 0.0), 6.0) / 6.0)
    if ACTIVATION == 6:  # gelu; the constant is 1/√2
        b_z = 0.5 * b_z * (1.0 + tl.erf(b_z * 0.7071067811865476))
    return b_z


@triton.jit
def activation_gradient(b_dz, b_known, slope, ACTIVATION: tl.constexpr):
    """act'(z) dz, from the output for relu, relu6 and leaky_relu, and from the input z for the others."""
    if ACTIVATION == 1:
        b_dz = tl.where(b_known > 0, b_dz, 0.0)
    if ACTIVATION == 2:
        b_dz = tl.where((b_known > 0) & (b_known < 6.0), b_dz, 0.0)
    if ACTIVATION == 3:
        b_dz = tl.where(b_known > 0, b_dz, b_dz * slope)
    if ACTIVATION == 4:
        b_sigmoid = tl.sigmoid(b_known)
        b_dz = b_dz * (b_sigmoid * (1.0 + b_known * (1.0 - b_sigmoid)))
    if ACTIVATION == 5:
        b_inside = tl.where(b_known < 3.0, b_dz * (b_known / 3.0 + 0.5), b_dz)
        b_dz = tl.where(b_known > -3.0, b_inside, 0.0)
    if ACTIVATION == 6:  # Φ(z) + z φ(z), with φ(0) = 1/√(2π)
        b_below = 0.5 * (1.0 + tl.erf(b_known * 0.7071067811865476))
        b_dz = b_dz * (b_below + b_known * 0.3989422804014327 * tl.exp(-0.5 * b_known * b_known))
    return b_dz
