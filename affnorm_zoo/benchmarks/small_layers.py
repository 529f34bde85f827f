"""Small layers in a row, whose step takes as long as the host needs to start their operations."""

from torch import nn

from affnorm_zoo.factory import bind, norm_layer
from affnorm_zoo.registry import get_normalizer

LAYERS = {"conv3x3": 3, "conv1x1": 1}  # name -> size of the kernels
_DEPTH, _CHANNELS = 20, 8


def small_layers(name: str, normalizer: str, num_classes: int) -> nn.Module:
    """20 convolutions to 8 channels, each with its norm and ReLU, and a classifier.

    Args:
        name: one of ``LAYERS``.
        normalizer: a registered normaliser for images.
        num_classes: of the classifier.
    """
    size, norm, layers = LAYERS[name], norm_layer(normalizer, layout="NCHW"), []
    for index in range(_DEPTH):
        conv = nn.Conv2d(_CHANNELS if index else 3, _CHANNELS, size, padding=size // 2, bias=False)
        layers += [conv, norm(_CHANNELS), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_CHANNELS, num_classes))
    if get_normalizer(normalizer).is_bound:
        bind(model)
    return model
