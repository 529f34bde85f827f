from timm.layers import Attention
from torch import nn

from affnorm_zoo.factory.families._family import has_hooks
from affnorm_zoo.layers import MixedAttention, check_writable

ATTENTIONS = ("plain", "mixed")


def mix_attention(model: nn.Module) -> list[str]:
    """Replace every timm Attention of a bound ``model``, in place, by a :class:`affnorm_zoo.layers.MixedAttention`.

    Parameters and state dict stay, but the network computes another function: trained weights do not carry over.

    Returns:
        The paths of the attentions.

    Raises:
        ValueError: there is none, one is not bound, or one has hooks or computed parameters. The model is then
            unchanged.
    """
    found = {name: module for name, module in model.named_modules() if type(module) is Attention}
    if not found:
        raise ValueError("attention='mixed' needs timm's Attention, and the model has none")
    for name, module in found.items():
        check_writable(module.qkv)
        if has_hooks(module):
            raise ValueError(f"{name!r} has hooks, which what takes its place would not have: register them after")
    for name, mixed in {name: MixedAttention(module) for name, module in found.items()}.items():
        model.set_submodule(name, mixed)
    return list(found)
