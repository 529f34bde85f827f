from timm.layers import Attention
from torch import nn


def take_over(own: nn.Module, attention: Attention) -> None:
    """Give ``own``, an initialised module without children, the children, options and mode of timm's ``attention``."""
    for name in ("num_heads", "head_dim", "attn_dim", "scale", "fused_attn"):
        setattr(own, name, getattr(attention, name))
    own.gate = None  # type: ignore[assignment]
    for name, child in attention.named_children():
        setattr(own, name, child)
    own.train(attention.training)
