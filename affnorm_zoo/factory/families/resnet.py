"""timm's ResNets: every norm stands behind its convolution, and a ReLU often right behind the norm."""

from collections.abc import Iterator

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from affnorm_zoo.factory.families._family import Binding, Family, is_identity
from affnorm_zoo.factory.families._resnet_blocks import BasicBlock as JoinedBasicBlock
from affnorm_zoo.factory.families._resnet_blocks import Bottleneck as JoinedBottleneck


def _basic_block(block: BasicBlock) -> Iterator[Binding]:
    yield Binding("bn1", ("conv1",), "act1" if is_identity(block.drop_block) else None)
    yield Binding("bn2", ("conv2",))


def _bottleneck(block: Bottleneck) -> Iterator[Binding]:
    yield Binding("bn1", ("conv1",), "act1")
    yield Binding("bn2", ("conv2",), "act2" if is_identity(block.drop_block) else None)
    yield Binding("bn3", ("conv3",))


def _resnet(model: ResNet) -> Iterator[Binding]:
    # the last convolution of a deep stem stands alone in its Sequential: its norm is the model's own
    deep_stem = isinstance(model.conv1, nn.Sequential)
    yield Binding("bn1", (f"conv1.{len(model.conv1) - 1}" if deep_stem else "conv1",), "act1")


FAMILY = Family(
    roots=(ResNet,),
    rules={ResNet: _resnet, BasicBlock: _basic_block, Bottleneck: _bottleneck},
    layout="NCHW",
    # at a fifth, the sum of 36 branches, the longest stage of a ResNet-152, has about the variance of the shortcut
    branch_ends={
        **dict.fromkeys((BasicBlock, JoinedBasicBlock), (("conv2",), 0.2)),
        **dict.fromkeys((Bottleneck, JoinedBottleneck), (("conv3",), 0.2)),
    },
    pools=("maxpool",),
    joined={BasicBlock: JoinedBasicBlock, Bottleneck: JoinedBottleneck},
)
