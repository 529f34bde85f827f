"""A bound layer as a linear map of its parameters: z_p = a_p W x_p + h_p β for every position p.

affine_like has a_p = h_p = c / s_p with s_p = √(‖x_p‖² + κ²), and β = κ b. norm_like has a_p = c / ‖x_p‖, h_p = 1 and
β = b. A position is a patch of one group of a convolution, or a token of a linear layer. What is given in columns is
(groups, entries, positions).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.functional.patch_norm import patch_square_sum
from affnorm_zoo.functional.scale import inverse_norm
from affnorm_zoo.layers import BoundLayer

_STANDARDIZATION_EPS = 1e-6  # of affnorm_zoo.layers.PatchNormConv2d


class LayerView:
    """What the fits need of a bound layer, a convolution or a linear layer alike.

    Args:
        layer: with a bias.
        norm_first: the layer stands for one that reads its input through an L2 norm of RMS 1.
    """

    def __init__(self, layer: BoundLayer, norm_first: bool = False) -> None:
        self.layer = layer
        self.norm_first = norm_first
        self.is_conv = layer.like is nn.Conv2d
        self.groups = layer.groups if self.is_conv else 1
        self.fan_in = layer.weight[0].numel()
        inner_kappa = layer.inner_kappa()
        self.bias_is_inside = inner_kappa is not None
        self.kappa = inner_kappa or 0.0
        self.is_standardized = not layer.is_plain()

    def square_sums(self, x: Tensor) -> Tensor:
        """‖x_p‖²: (groups, positions), in float64."""
        if not self.is_conv:
            return x.double().square().sum(dim=-1).reshape(1, -1)
        layer = self.layer
        args = (layer.kernel_size, layer.stride, layer.conv_padding, layer.dilation, layer.groups)
        return patch_square_sum(layer.pad(x).double(), *args).transpose(0, 1).flatten(1)

    def factors(self, square_sums: Tensor) -> tuple[Tensor, Tensor]:
        """a_p and h_p."""
        a = self.layer.c * inverse_norm(square_sums, self.kappa)
        return a, a if self.bias_is_inside else torch.ones_like(a)

    def norms(self, square_sums: Tensor) -> Tensor:
        """g_p, for which the layer that this one stands for computes W' g_p x_p + b'."""
        if not self.norm_first:
            return torch.ones_like(square_sums)
        return math.sqrt(self.fan_in) * inverse_norm(square_sums, 0.0)

    def patches(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x_p in columns for the ``chosen`` positions: (groups, fan-in, chosen), in float64."""
        if not self.is_conv:
            return x.reshape(1, -1, self.fan_in)[:, chosen].transpose(1, 2).double()
        layer = self.layer
        columns = F.unfold(layer.pad(x), layer.kernel_size, layer.dilation, layer.conv_padding, layer.stride)
        columns = columns.reshape(len(x), self.groups, self.fan_in, -1).permute(1, 2, 0, 3).flatten(2)
        return columns[:, :, chosen].double()

    def responses(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x_p in columns: (groups, outputs per group, positions), in float64."""
        if not self.is_conv:
            return self.columns(F.linear(x, weight))
        layer = self.layer
        geometry: Any = (layer.stride, layer.conv_padding, layer.dilation, layer.groups)
        return self.columns(F.conv2d(layer.pad(x), weight, None, *geometry))

    def columns(self, z: Tensor) -> Tensor:
        """Outputs of the layer in columns: (groups, outputs per group, positions), in float64."""
        if not self.is_conv:
            return z.reshape(1, -1, z.shape[-1]).transpose(1, 2).double()
        return z.reshape(len(z), self.groups, z.shape[1] // self.groups, -1).permute(1, 2, 0, 3).flatten(2).double()

    @torch.no_grad()
    def write(self, weight: Tensor, shift: Tensor) -> None:
        """Let the layer compute a_p W x_p + h_p β for W = ``weight`` and β = ``shift``."""
        layer = self.layer
        if self.is_standardized:  # the layer subtracts the kernel's mean, which is 0, and divides by its deviation
            deviation = weight.flatten(1).std(dim=1, correction=0)
            weight = weight / (deviation * math.sqrt(self.fan_in)).reshape(-1, 1, 1, 1)
            layer.gain.copy_(layer.c * deviation * math.sqrt(1 + _STANDARDIZATION_EPS * self.fan_in))
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.bias.copy_(shift / self.kappa if self.bias_is_inside else shift)
