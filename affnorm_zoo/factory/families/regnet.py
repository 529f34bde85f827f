"""timm's RegNets X and Y. Their convolutions and norms stand in ``ConvNormAct``, whose rule the EfficientNets state."""

from collections.abc import Iterator

from timm.models.regnet import Bottleneck, PreBottleneck, RegNet

from affnorm_zoo.factory.families._family import Binding, Family


def _pre_bottleneck(_: PreBottleneck) -> Iterator[Binding]:
    # its shortcut starts behind the first norm, so that this normalises the residual stream and no layer
    raise ValueError("a RegNet with pre-activation (PreBottleneck) cannot be bound: use one of regnetx_*, regnety_*")


FAMILY = Family(
    roots=(RegNet,),
    rules={PreBottleneck: _pre_bottleneck},
    layout="NCHW",
    # at a fifth, the sum of 25 branches, as many as the longest stage has, has about the variance of the shortcut
    branch_ends={Bottleneck: (("conv3.conv",), 0.2)},
    is_residual=lambda block: block.downsample is not None,
)
