"""timm's EfficientNets and MobileNets: every norm stands behind its convolution and holds the activation."""

from collections.abc import Callable, Iterator

from timm.layers import ConvNormAct
from timm.models._efficientnet_blocks import (
    CondConvResidual,
    ConvBnAct,
    DepthwiseSeparableConv,
    EdgeResidual,
    InvertedResidual,
    UniversalInvertedResidual,
)
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3, MobileNetV3Features
from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family


def conv_norm_act(**pairs: str) -> Callable[[nn.Module], Iterator[Binding]]:
    """Return the rule of a block with norms that hold their activation, each behind its convolution.

    Args:
        pairs: norm=convolution.
    """

    def rule(_: nn.Module) -> Iterator[Binding]:
        for slot, conv in pairs.items():
            yield Binding(slot, (conv,), has_activation=True)

    return rule


def _mobilenet_features(_: MobileNetV3Features) -> Iterator[Binding]:
    yield Binding("bn1", ("conv_stem",), "act1")  # unlike the model itself


_INVERTED = conv_norm_act(bn_s2d="conv_s2d", bn1="conv_pw", bn2="conv_dw", bn3="conv_pwl")

FAMILY = Family(
    roots=(EfficientNet, MobileNetV3),
    rules={
        EfficientNet: conv_norm_act(bn1="conv_stem", bn2="conv_head"),
        EfficientNetFeatures: conv_norm_act(bn1="conv_stem"),
        MobileNetV3: conv_norm_act(bn1="conv_stem", norm_head="conv_head"),
        MobileNetV3Features: _mobilenet_features,
        ConvBnAct: conv_norm_act(bn1="conv"),
        DepthwiseSeparableConv: conv_norm_act(bn_s2d="conv_s2d", bn1="conv_dw", bn2="conv_pw"),
        InvertedResidual: _INVERTED,
        CondConvResidual: _INVERTED,
        EdgeResidual: conv_norm_act(bn1="conv_exp", bn2="conv_pwl"),
        ConvNormAct: conv_norm_act(bn="conv"),
    },
    layout="NCHW",
    # at a fifth, the sum of 12 branches, the longest stage of an EfficientNet-B7, has half the variance of the shortcut
    branch_ends={
        ConvBnAct: (("conv",), 0.2),
        DepthwiseSeparableConv: (("conv_pw",), 0.2),
        InvertedResidual: (("conv_pwl",), 0.2),
        EdgeResidual: (("conv_pwl",), 0.2),
        UniversalInvertedResidual: (("pw_proj.conv",), 0.2),
    },
    is_residual=lambda block: block.has_skip,
)
