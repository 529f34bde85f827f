"""The kernel that a convolution sees, and its gradient, from the parameters alone.

With x̂ = (W - mean) / σ, the kernel is Ŵ = gain x̂ / c. G is a cotangent of Ŵ; means are over each output channel:

    dgain = Σ G x̂ / c        dW = gain / (c σ) (G - mean(G) - x̂ mean(G x̂))

This is group norm of one image whose channels, each a group, are the output channels and whose pixels are a kernel's
weights. torch's operation for it takes the gain along. On a CPU it is several times as fast in float32 as batch norm of
the same image. The gradient is that of batch norm, which takes Σ G x̂ from differences to the
mean. Group norm's subtracts mean Σ G from Σ G W, which loses the result where the mean is much larger than σ. In half
precision both read and write it and compute in float32, with the gain and the statistics in float32 as well.

Without standardisation Ŵ = gain W, dgain = Σ G W and dW = gain G. The backward computes Ŵ again instead of saving it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.functional.weight_standardization import EPS

aten = torch.ops.aten


class Kernel(NamedTuple):
    """A kernel Ŵ in the shape and layout of its weight.

    If standardised also gain / c, (C_out,), and mean and 1/σ, (1, C_out), all in float32 or wider.
    """

    value: Tensor
    scale: Tensor | None = None
    mean: Tensor | None = None
    inv_std: Tensor | None = None


def standardized_kernel(weight: Tensor, gain: Tensor | None, c: float, dtype: torch.dtype) -> Kernel:
    """The kernel for ``dtype`` of a layer with weight standardisation."""
    image = _as_image(_operand(weight, dtype), weight)
    _, channels, n = image.shape
    wide = torch.promote_types(image.dtype, torch.float32)
    scale = image.new_full((channels,), 1 / c, dtype=wide) if gain is None else gain.to(wide) / c
    value, mean, inv_std = torch.native_group_norm(image, scale, None, 1, channels, n, channels, EPS)
    return Kernel(_from_image(value.to(dtype), weight), scale, mean, inv_std)


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
    if kernel.scale is None or kernel.mean is None or kernel.inv_std is None:
        assert gain is not None
        g = widen(dkernel)
        dgain = (g * weight).flatten(1).sum(1)
        return (g * _per_kernel(gain)).to(weight.dtype), dgain.to(gain.dtype)
    image = _as_image(_operand(weight, dkernel.dtype), weight)
    dweight, dscale, _ = aten.native_batch_norm_backward.default(
        _as_image(dkernel.to(image.dtype), weight), image, kernel.scale, None, None, kernel.mean.view(-1),
        kernel.inv_std.view(-1), True, EPS, [True, gain is not None, False],
    )  # fmt: skip
    return _from_image(dweight, weight).to(weight.dtype), None if gain is None else (dscale / c).to(gain.dtype)


def _operand(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as the operations read it: as it is if it has the dtype of the kernel, otherwise wide.

    The compiler rounds statistics of norms to the dtype of the image. There the weight is wide, which costs nothing.
    """
    return weight if weight.dtype == dtype and not torch.compiler.is_compiling() else widen(weight)


def _per_kernel(gain: Tensor) -> Tensor:
    return gain.reshape(-1, 1, 1, 1)


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _as_image(t: Tensor, weight: Tensor) -> Tensor:
    """(1, C_out, n) in the weight's order of memory; a view if ``t`` has that order."""
    return (t.permute(0, 2, 3, 1) if _is_channels_last(weight) else t).reshape(1, weight.shape[0], -1)


def _from_image(image: Tensor, weight: Tensor) -> Tensor:
    n, channels, height, width = weight.shape
    if _is_channels_last(weight):
        return image.view(n, height, width, channels).permute(0, 3, 1, 2)
    return image.view(weight.shape)
