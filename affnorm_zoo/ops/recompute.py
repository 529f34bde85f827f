"""Forward operations that a backward repeats, as custom operators.

As plain operations they would be deduplicated: the compiler would notice that forward and backward compute the same
value and save it, which defeats the recomputation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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


@convolve_again.register_fake
def _(x, weight, bias, stride, padding, dilation, groups):
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


@gelu_again.register_fake
def _(x):
    return F.gelu(x)
