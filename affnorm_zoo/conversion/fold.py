"""Batch norm into the convolution before it: W' = γ/σ W and b' = β + γ/σ (b - μ)."""

import copy

import torch
from torch import nn

from affnorm_zoo.conversion.check import batch_norms, check_convolution
from affnorm_zoo.errors import UsageError
from affnorm_zoo.factory import Binding, plan_bindings, slot_for


def fold_batch_norms(model: nn.Module, normalizer: str) -> tuple[nn.Module, list[Binding]]:
    """A copy of the model whose batch norms are slots for ``normalizer``, folded into their convolutions.

    Raises:
        UsageError: a norm cannot be folded, or is not paired with a convolution.
    """
    norms = {name: model.get_submodule(name) for name in batch_norms(model)}
    slotted = copy.deepcopy(model)
    for name, norm in norms.items():
        slotted.set_submodule(name, slot_for(norm, normalizer))
    try:
        bindings = plan_bindings(slotted)
    except ValueError as error:
        raise UsageError(f"the model cannot be converted: {error}") from error
    for binding in bindings:
        if binding.norm_first or not binding.layers:
            raise UsageError(
                f"{binding.slot!r} stands before its convolutions, as in a pre-activation network: it cannot be folded "
                "into the one before it, whose outputs are used without it"
            )
        check_convolution(binding.slot, binding.layers[0], slotted.get_submodule(binding.layers[0]))
    for binding in bindings:
        _fold(slotted.get_submodule(binding.layers[0]), norms[binding.slot])
    return slotted, bindings


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = shift * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    conv.weight.copy_(conv.weight.double() * factor.reshape(-1, 1, 1, 1))
    if conv.bias is None:
        empty = torch.empty(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
        conv.bias = nn.Parameter(empty, requires_grad=conv.weight.requires_grad)
    conv.bias.copy_(shift)
