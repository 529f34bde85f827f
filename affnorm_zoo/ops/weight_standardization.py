"""The kernel that a convolution sees, and its gradient, from the parameters alone.

With x̂ = (W - mean) / σ, the kernel is Ŵ = gain x̂ / c. G is a cotangent of Ŵ; means are over each output channel:

    dgain = Σ G x̂ / c        dW = gain / (c σ) (G - mean(G) - x̂ mean(G x̂))

Without standardisation Ŵ = gain W, dgain = Σ G W and dW = gain G. The backward computes Ŵ again instead of saving it.
x̂ is a difference and then a quotient: with the variance as a difference of squares it would be lost where the mean is
much larger than σ.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.functional.weight_standardization import EPS


class Kernel(NamedTuple):
    """A kernel Ŵ in the shape and layout of its weight, and what its gradient needs, in float32 or wider."""

    value: Tensor
    normalized: Tensor  # x̂ in rows, one per output channel; W without standardisation
    inv_std: Tensor | None  # 1/σ, (C_out, 1)


def standardized_parts(weight: Tensor, gain: Tensor | None, c: float, dtype: torch.dtype) -> Kernel:
    """The kernel for ``dtype`` of a layer with weight standardisation."""
    last = _is_channels_last(weight)
    rows = _rows(widen(weight), last)
    # one pass over memory: a row stays in the cache between its statistics and its quotient
    normalized, _, inv_std = torch.native_layer_norm(rows, [rows.shape[1]], None, None, EPS)
    value = normalized * _factor(gain, normalized, c)
    return Kernel(_from_rows(value.to(dtype), weight, last), normalized, inv_std)


def gained_parts(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Kernel:
    """The kernel for ``dtype`` of a layer that has only a gain."""
    last = _is_channels_last(weight)
    rows = _rows(widen(weight), last)
    return Kernel(_from_rows((rows * _factor(gain, rows, 1.0)).to(dtype), weight, last), rows, None)


def effective_weight(weight: Tensor, gain: Tensor | None, c: float, standardized: bool) -> Tensor:
    """The kernel that :func:`affnorm_zoo.ops.patch_norm.patch_norm` convolves with, to the bit; without a graph."""
    if standardized:
        return standardized_parts(weight, gain, c, weight.dtype).value
    return weight if gain is None else gained_parts(weight, gain, weight.dtype).value


def kernel_gradients(
    dkernel: Tensor, kernel: Kernel, weight: Tensor, gain: Tensor | None, c: float
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and gain from that of the kernel."""
    last = _is_channels_last(weight)
    g = _rows(widen(dkernel), last)
    # a product of matrices would be one pass less, but round its operands where TensorFloat-32 is allowed
    along = (g * kernel.normalized).sum(1, keepdim=True)  # Σ G x̂
    if kernel.inv_std is None:
        dweight, dgain = g * _factor(gain, g, 1.0), along
    else:
        rate = _factor(gain, g, c) * kernel.inv_std
        by_entry = rate / -g.shape[1]
        dweight = torch.addcmul(by_entry * g.sum(1, keepdim=True), kernel.normalized, by_entry * along)
        dweight, dgain = dweight.addcmul_(g, rate), along / c
    dweight = _from_rows(dweight, weight, last).to(weight.dtype)
    return dweight, None if gain is None else dgain.squeeze(1).to(gain.dtype)


def _factor(gain: Tensor | None, rows: Tensor, c: float) -> Tensor:
    """gain / c, (C_out, 1), or (1, 1) without a gain."""
    return rows.new_full((1, 1), 1 / c) if gain is None else gain.to(rows.dtype).unsqueeze(1) / c


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _rows(t: Tensor, channels_last: bool) -> Tensor:
    """(C_out, n) in the order of memory; a view if ``t`` has that order."""
    return t.permute(0, 2, 3, 1).flatten(1) if channels_last else t.flatten(1)


def _from_rows(rows: Tensor, weight: Tensor, channels_last: bool) -> Tensor:
    n, channels, height, width = weight.shape
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2) if channels_last else rows.view(weight.shape)
