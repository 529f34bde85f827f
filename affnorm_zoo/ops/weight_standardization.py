"""The kernel that a convolution sees, and its gradient, from the parameters alone.

With x̂ = (W - mean) / σ, the kernel is Ŵ = gain x̂ / c. G is a cotangent of Ŵ; means are over each output channel:

    dgain = Σ G x̂ / c        dW = gain / (c σ) (G - mean(G) - x̂ mean(G x̂))

This is batch norm of one image whose channels are the output channels and whose pixels are a kernel's weights. torch's
operation for it takes the gain along, and so does its gradient. Both take differences to the mean: where the mean is
much larger than σ, a variance as a difference of squares would be lost.

Without standardisation Ŵ = gain W, dgain = Σ G W and dW = gain G. The backward computes Ŵ again instead of saving it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.functional.weight_standardization import EPS

aten = torch.ops.aten


class Kernel(NamedTuple):
    """A kernel Ŵ in the shape and layout of its weight; if standardised, mean and 1/σ, (C_out,), float32 or wider."""

    value: Tensor
    mean: Tensor | None = None
    inv_std: Tensor | None = None


def standardized_kernel(weight: Tensor, gain: Tensor | None, c: float, dtype: torch.dtype) -> Kernel:
    """The kernel for ``dtype`` of a layer with weight standardisation."""
    image = _as_image(widen(weight), weight)
    value, mean, inv_std = torch.native_batch_norm(image, _scale(gain, image, c), None, None, None, True, 0.0, EPS)
    return Kernel(_from_image(value.to(dtype), weight), mean, inv_std)


def gained_kernel(weight: Tensor, gain: Tensor, dtype: torch.dtype) -> Kernel:
    """The kernel for ``dtype`` of a layer that has only a gain."""
    return Kernel((widen(weight) * _per_kernel(gain)).to(dtype))


def effective_weight(weight: Tensor, gain: Tensor | None, c: float, standardized: bool) -> Tensor:
    """The kernel that :func:`affnorm_zoo.ops.patch_norm.patch_norm` convolves with, to the bit; without a graph."""
    if standardized:
        return standardized_kernel(weight, gain, c, weight.dtype).value
    return weight if gain is None else gained_kernel(weight, gain, weight.dtype).value


def kernel_gradients(
    dkernel: Tensor, kernel: Kernel, weight: Tensor, gain: Tensor | None, c: float
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and gain from that of the kernel; ``gain`` is None only under standardisation."""
    g = widen(dkernel)
    if kernel.mean is None:
        assert gain is not None
        dgain = (g * weight).flatten(1).sum(1)
        return (g * _per_kernel(gain)).to(weight.dtype), dgain.to(gain.dtype)
    image = _as_image(widen(weight), weight)
    dweight, dscale, _ = aten.native_batch_norm_backward.default(
        _as_image(g, weight), image, _scale(gain, image, c), None, None, kernel.mean, kernel.inv_std, True, EPS,
        [True, gain is not None, False],
    )  # fmt: skip
    return _from_image(dweight, weight).to(weight.dtype), None if gain is None else (dscale / c).to(gain.dtype)


def _scale(gain: Tensor | None, image: Tensor, c: float) -> Tensor:
    """gain / c, (C_out,), without a gain 1 / c."""
    return image.new_full((image.shape[1],), 1 / c) if gain is None else gain.to(image.dtype) / c


def _per_kernel(gain: Tensor) -> Tensor:
    return gain.reshape(-1, 1, 1, 1)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _as_image(t: Tensor, weight: Tensor) -> Tensor:
    """(1, C_out, n) in the weight's order of memory; a view if ``t`` has that order."""
    return (t.permute(0, 2, 3, 1) if _is_channels_last(weight) else t).flatten(1).unsqueeze(0)


def _from_image(image: Tensor, weight: Tensor) -> Tensor:
    n, channels, height, width = weight.shape
    if _is_channels_last(weight):
        return image.view(n, height, width, channels).permute(0, 3, 1, 2)
    return image.view(weight.shape)
