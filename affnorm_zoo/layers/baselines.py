"""The standard norms of timm and torch, registered so that every comparison uses the same interface."""

from timm.layers import GroupNorm, LayerNorm, LayerNorm2d, RmsNorm, RmsNorm2d
from torch import nn

from affnorm_zoo.registry import NormalizerSpec, register_normalizer


def group_norm(num_channels: int, **kwargs) -> nn.Module:
    """Build timm's group norm with 32 groups, or with groups of two channels if 32 groups would have fewer."""
    return GroupNorm(num_channels, num_groups=32 if num_channels >= 64 else max(num_channels // 2, 1), **kwargs)


register_normalizer(
    NormalizerSpec(
        name="batchnorm",
        summary="batch norm, for convolutional networks",
        formula="γ (x - mean_N) / √(var_N + ε) + β",
        norm2d=nn.BatchNorm2d,
        order=100,
    )
)
register_normalizer(
    NormalizerSpec(
        name="groupnorm",
        summary="group norm, 32 groups or groups of two channels, for convolutional networks",
        formula="γ (x - mean_G) / √(var_G + ε) + β",
        norm2d=group_norm,
        order=100,
    )
)
register_normalizer(
    NormalizerSpec(
        name="layernorm",
        summary="layer norm over the channels",
        formula="γ (x - mean_C) / √(var_C + ε) + β",
        norm=LayerNorm,
        norm2d=LayerNorm2d,
        order=100,
    )
)
register_normalizer(
    NormalizerSpec(
        name="rmsnorm",
        summary="RMS norm over the channels",
        formula="γ x / √(mean_C(x²) + ε)",
        norm=RmsNorm,
        norm2d=RmsNorm2d,
        order=100,
    )
)
register_normalizer(
    NormalizerSpec(
        name="none", summary="no normalisation", formula="x", norm=nn.Identity, norm2d=nn.Identity, order=100
    )
)
