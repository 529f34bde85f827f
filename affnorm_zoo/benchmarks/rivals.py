"""Other ways to save activation memory, as contenders of the benchmark only. Each keeps timm's own norm as it computes.

- Checkpointing keeps the inputs of blocks, and runs each block again in the backward.
- In-place ABN keeps the output of batch norm and leaky ReLU, which the next convolution keeps anyway, and inverts it.
- Memory-sharing layer norm keeps its output, which the next linear layer keeps anyway, and not its input.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.01  # of the leaky ReLU, as published
_ACTIVATED_NORMS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNet: (("bn1", "act1"),),
    BasicBlock: (("bn1", "act1"),),
    Bottleneck: (("bn1", "act1"), ("bn2", "act2")),
}


def checkpointed(architecture: str, num_classes: int) -> nn.Module:
    """timm's own network with activation checkpointing."""
    model = timm.create_model(architecture, num_classes=num_classes)
    model.set_grad_checkpointing()
    return model


def with_inplace_abn(architecture: str, num_classes: int) -> nn.Module:
    """timm's ResNet with :class:`InPlaceABN` for each batch norm that an activation follows."""
    model = timm.create_model(architecture, num_classes=num_classes)
    for module in list(model.modules()):
        pairs = _ACTIVATED_NORMS.get(type(module), ())
        for norm, activation in pairs:
            setattr(module, norm, InPlaceABN(getattr(module, norm).num_features))
            setattr(module, activation, nn.Identity())
    return model


def with_shared_layer_norm(architecture: str, num_classes: int) -> nn.Module:
    """timm's ViT with :class:`SharedLayerNorm` in its blocks; the final norm stays."""
    model = timm.create_model(architecture, num_classes=num_classes)
    for block in model.blocks:
        for name in ("norm1", "norm2"):
            setattr(block, name, SharedLayerNorm(getattr(block, name).eps))
    return model


# name in tables -> builder, called with timm's architecture and the number of classes
RIVALS: dict[str, Callable[[str, int], nn.Module]] = {
    "batchnorm, checkpointed": checkpointed,
    "layernorm, checkpointed": checkpointed,
    "in-place ABN": with_inplace_abn,
    "memory-sharing layer norm": with_shared_layer_norm,
}


class InPlaceABN(nn.BatchNorm2d):
    """Batch norm and leaky ReLU in training mode, (N, C, H, W); keeps its output, not its input.

    Source:
        Rota Bulò et al. 2018, https://arxiv.org/abs/1712.02616, algorithm "in-place ABN I". In plain torch.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is torch's
        if not self.training:
            return F.leaky_relu(super().forward(input), _SLOPE)
        return _InPlaceABN.apply(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps)


class _InPlaceABN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
    ) -> Tensor:
        y, _, inv_std = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, 0.1, eps)
        z = F.leaky_relu_(y, _SLOPE)
        ctx.save_for_backward(z, weight, bias, inv_std)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple:
        z, weight, bias, inv_std = ctx.saved_tensors
        is_positive = z > 0
        dy = torch.where(is_positive, dz, _SLOPE * dz)
        shape = (1, -1, 1, 1)
        normalized = (torch.where(is_positive, z, z / _SLOPE) - bias.view(shape)) / weight.view(shape)
        count = z.numel() // z.shape[1]
        dbias = dy.sum((0, 2, 3))
        dweight = (dy * normalized).sum((0, 2, 3))
        dx = dy - (dbias / count).view(shape) - normalized * (dweight / count).view(shape)
        return dx * (weight * inv_std).view(shape), dweight, dbias, None, None, None


class SharedLayerNorm(nn.Module):
    """Layer norm without γ and β over the last axis, (..., C) to (..., C); keeps its output, not its input.

    γ and β belong into the linear layers that read it.

    Source:
        Yang et al. 2024, https://arxiv.org/abs/2406.16282, memory-sharing backpropagation. In plain torch.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _SharedLayerNorm.apply(x, self.eps)


class _SharedLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, _, inv_std = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(y, inv_std)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        y, inv_std = ctx.saved_tensors
        return inv_std * (dy - dy.mean(-1, keepdim=True) - y * (dy * y).mean(-1, keepdim=True)), None
