"""timm's ResNetV2: norms that hold their activation and stand before the convolutions that read them.

A slot is bound to the convolutions that read it, as that of a transformer is to its linear layers: conv1 and that of
the shortcut read norm1, conv2 reads norm2, conv3 norm3. Each convolution of a block is bound once, whichever of its
neighbours one starts from, except for the last one: no norm follows it, as it writes the residual stream. The stem has
no norm behind it and stays plain. The last norm feeds the pooling and becomes an L2 norm over the channels.

The divergence is that of the map that the norm feeds, so it goes where that map is. A patch is measured behind the
activation, which is what the convolution multiplies. The activations of norm2 and norm3 follow conv1 and conv2 directly
and are absorbed there. That of norm1 reads the residual stream and stays a module.
"""

from collections.abc import Iterator

from timm.models.resnetv2 import Bottleneck, DownsampleAvg, DownsampleConv, PreActBasic, PreActBottleneck, ResNetV2
from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family
from affnorm_zoo.factory.families.efficientnet import conv_norm_act


def _pre_activation(block: nn.Module) -> Iterator[Binding]:
    shortcut = () if block.downsample is None else ("downsample.conv",)
    yield Binding("norm1", ("conv1", *shortcut), norm_first=True, has_activation=True)
    yield Binding("norm2", ("conv2",), norm_first=True, has_activation=True, writer="conv1")
    yield Binding("norm3", ("conv3",), norm_first=True, has_activation=True, writer="conv2")


def _resnetv2(_: ResNetV2) -> Iterator[Binding]:
    yield Binding("norm", has_activation=True)


_DOWNSAMPLE = conv_norm_act(norm="conv")

FAMILY = Family(
    roots=(ResNetV2,),
    rules={
        ResNetV2: _resnetv2,
        PreActBasic: _pre_activation,
        PreActBottleneck: _pre_activation,
        Bottleneck: conv_norm_act(norm1="conv1", norm2="conv2", norm3="conv3"),
        DownsampleConv: _DOWNSAMPLE,
        DownsampleAvg: _DOWNSAMPLE,
    },
    layout="NCHW",
    # as in a ResNet
    branch_ends={PreActBasic: (("conv2",), 0.2), PreActBottleneck: (("conv3",), 0.2), Bottleneck: (("conv3",), 0.2)},
)
