"""Forward operations that a backward repeats, as custom operators.

As plain operations they would be deduplicated: the compiler would notice that forward and backward compute the same
value and save it, which defeats the recomputation.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from affnorm_zoo.functional.scale import widen
from affnorm_zoo.ops.weight_standardization import standardized_kernel


@torch.library.custom_op("affnorm_zoo::convolve_again", mutates_args=())
def convolve_again(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """:func:`torch.nn.functional.conv2d`."""
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


@torch.library.custom_op("affnorm_zoo::gelu_again", mutates_args=())
def gelu_again(x: Tensor) -> Tensor:
    """:func:`torch.nn.functional.gelu`."""
    return F.gelu(x)


@torch.library.custom_op("affnorm_zoo::standardize_again", mutates_args=())
def standardize_again(weight: Tensor, gain: Tensor | None, c: float, dtype: torch.dtype) -> list[Tensor]:
    """The parts of :func:`affnorm_zoo.ops.weight_standardization.standardized_kernel`."""
    kernel = standardized_kernel(weight, gain, c, dtype)
    return [part for part in kernel if part is not None]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ/√d + mask) over the keys, (..., L, L), in the dtype of q; the softmax is in float32 or wider."""
    logits = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.mT
    if mask is not None:
        logits = logits + mask
    return widen(logits).softmax(dim=-1).to(q.dtype)


@torch.library.custom_op("affnorm_zoo::attend_again", mutates_args=())
def attend_again(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`attention_weights`."""
    return attention_weights(q, k, mask)


@attend_again.register_fake
def _(q, k, mask):
    return attention_weights(q, k, mask)


@convolve_again.register_fake
def _(x, weight, bias, stride, padding, dilation, groups):
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


@gelu_again.register_fake
def _(x):
    return F.gelu(x)


@standardize_again.register_fake
def _(weight, gain, c, dtype):
    return list(standardized_kernel(weight, gain, c, dtype))
