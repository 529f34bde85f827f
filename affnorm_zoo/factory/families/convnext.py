"""timm's ConvNeXts: the MLP reads the norm of a block, the convolution that of a downsampling.

The norm of a block stands between a depthwise convolution and the MLP. The divergence is a matter of the layer that
reads the normalised input, which is the MLP's first. The depthwise convolution and the MLP's second layer read no norm
and are bound as well. The norm of the stem stands behind its convolution, as in a ResNet; the rule for ``Sequential``
covers it and the downsampling.
"""

from collections.abc import Iterator

from timm.layers import NormMlpClassifierHead
from timm.models.convnext import ConvNeXt, ConvNeXtBlock

from affnorm_zoo.factory.families._family import Binding, Family


def _block(block: ConvNeXtBlock) -> Iterator[Binding]:
    layout = "NCHW" if block.use_conv_mlp else "NHWC"
    yield Binding("norm", ("mlp.fc1",), norm_first=True, unnormed=("conv_dw", "mlp.fc2"), layout=layout)


def _head(_: NormMlpClassifierHead) -> Iterator[Binding]:
    yield Binding("norm")  # in front of the classifier, which stays a plain layer


def _convnext(_: ConvNeXt) -> Iterator[Binding]:
    yield Binding("norm_pre")  # in front of the pooling


FAMILY = Family(
    roots=(ConvNeXt,),
    rules={ConvNeXt: _convnext, ConvNeXtBlock: _block, NormMlpClassifierHead: _head},
    layout="NCHW",
    # at a fifth, the sum of 27 branches, the longest stage of a ConvNeXt-L, has about the variance of the shortcut
    branch_ends={ConvNeXtBlock: (("mlp.fc2",), 0.2)},
)
