"""Which path an op takes. Only the way it is called decides, never the environment. All paths give the same values."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def use_plain_path() -> bool:
    """Whether the caller needs plain operations: a tracer for another runtime, or an unusual derivative.

    The latter are the transforms of torch.func and forward mode, for which an autograd function has no rule.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def autocast_inputs(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would for a convolution, so that the backward pass saves the smaller copy."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
