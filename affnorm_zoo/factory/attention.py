from collections.abc import Callable

from timm.layers import Attention
from torch import nn

from affnorm_zoo.factory.families._family import has_hooks
from affnorm_zoo.layers import MixedAttention, RecomputedAttention, check_writable

ATTENTIONS = ("plain", "mixed", "recomputed")


def mix_attention(model: nn.Module) -> list[str]:
    """Replace every timm Attention of a bound ``model``, in place, by a :class:`affnorm_zoo.layers.MixedAttention`.

    Parameters and state dict stay, but the network computes another function: trained weights do not carry over.

    Returns:
        The paths of the attentions.

    Raises:
        ValueError: there is none, one is not bound, or one has hooks or computed parameters. The model is then
            unchanged.
    """
    return _replace(model, MixedAttention)


def recompute_attention(model: nn.Module) -> list[str]:
    """Replace every timm Attention of ``model``, in place, by a :class:`affnorm_zoo.layers.RecomputedAttention`.

    Function, parameters and state dict stay. Training saves fewer bytes and takes longer.

    Returns:
        The paths of the attentions.

    Raises:
        ValueError: there is none, or one has hooks. The model is then unchanged.
    """
    return _replace(model, RecomputedAttention)


def _replace(model: nn.Module, kind: Callable[[Attention], nn.Module]) -> list[str]:
    found = {name: module for name, module in model.named_modules() if type(module) is Attention}
    if not found:
        raise ValueError("another attention needs timm's Attention, and the model has none")
    for name, module in found.items():
        if kind is MixedAttention:
            check_writable(module.qkv)
        if has_hooks(module):
            raise ValueError(f"{name!r} has hooks, which what takes its place would not have: register them afterwards")
    for name, module in {name: kind(module) for name, module in found.items()}.items():
        model.set_submodule(name, module)
    return list(found)
