"""The maps written out once more, by unfolding every patch: slow, obvious, and independent of the package's way."""

import torch
from torch import Tensor
from torch.nn import functional as F


def unfolded_patch_norm(x, weight, bias, stride, padding, dilation, groups, *, norm_like: bool, c: float, kappa: float):
    """PatchNorm in the definition's own terms: gather each patch, take its length, multiply by the kernel."""
    n = x.shape[0]
    patches = F.unfold(x, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)  # (N, C_in·k·k, L)
    patches = patches.reshape(n, groups, -1, patches.shape[-1])
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    product = torch.einsum("goc,ngcl->ngol", kernels, patches)
    length = (patches.square().sum(2, keepdim=True) + (0.0 if norm_like else kappa**2)).sqrt()
    per_group = torch.zeros(()) if bias is None else bias.reshape(groups, -1, 1)
    safe = torch.where(length > 0, length, torch.ones_like(length))
    z = c * product / safe + per_group if norm_like else c * (product + kappa * per_group) / safe
    height = (x.shape[2] + 2 * padding[0] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    return z.reshape(n, weight.shape[0], height, -1)


def max_error(actual: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, in float64."""
    return (actual.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
