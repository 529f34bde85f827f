"""timm's DenseNets: as in a ResNetV2, a norm stands before the convolution that reads it; behind it in the stem."""

from collections.abc import Iterator

from timm.models.densenet import DenseLayer, DenseNet, DenseTransition

from affnorm_zoo.factory.families._family import Binding, Family


def _dense_layer(_: DenseLayer) -> Iterator[Binding]:
    yield Binding("norm1", ("conv1",), norm_first=True, has_activation=True)
    yield Binding("norm2", ("conv2",), norm_first=True, has_activation=True, writer="conv1")


def _transition(_: DenseTransition) -> Iterator[Binding]:
    yield Binding("norm", ("conv",), norm_first=True, has_activation=True)


def _densenet(_: DenseNet) -> Iterator[Binding]:
    yield Binding("features.norm5", has_activation=True)  # the stem's norms stand behind convolutions in a Sequential


FAMILY = Family(
    roots=(DenseNet,),
    rules={DenseNet: _densenet, DenseLayer: _dense_layer, DenseTransition: _transition},
    layout="NCHW",
)
