"""Which path an op takes. Only the way it is called decides, never the environment. All paths give the same values."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_BATCHED: list[Any] = [torch._C._parse_dispatch_key(name) for name in ("Batched", "FuncTorchBatched")]


def use_plain_path() -> bool:
    """Whether the caller needs plain operations: a tracer for another runtime, or an unusual derivative.

    The latter are the transforms of torch.func and forward mode, for which an autograd function has no rule.
    """
    # not torch.compiler.is_exporting(): torch 2.11 answers it with True inside torch.compile too
    if torch.jit.is_tracing() or torch.compiler._is_exporting_flag:
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def use_plain_gradient(dz: Tensor) -> bool:
    """Whether a backward needs plain operations: for a second derivative, or for many cotangents at once.

    The latter come from ``is_grads_batched`` of autograd, or from vmap over a backward.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or any(map(torch._C._dispatch_keys(dz).has, _BATCHED))


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast would cast a convolution of x, or None if it would leave it alone."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def autocast_inputs(x: Tensor, *others: Any) -> tuple[Any, ...]:
    """Cast x and other tensors or None as autocast would for a convolution, so that the smaller copies are saved."""
    dtype = autocast_dtype(x)
    return tuple(t if t is None or dtype is None else t.to(dtype) for t in (x, *others))


def overwritable(y: Tensor) -> Tensor:
    """What an operation returned, or a copy where something else may hold it and gives it out again.

    Selective checkpointing is such a mode; it refuses a tensor that was changed.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0:
        return y
    return y.clone()


def as_output(z: Tensor) -> Tensor:
    """What the forward of an autograd function returns for z, which an in-place operation may have written last.

    Compiled by torch 2.11, the result of an in-place operation would get a gradient of zero; a view of it does not.
    """
    return z.view_as(z) if torch.compiler.is_compiling() else z
