"""The roll call of families, in the order in which messages name them."""

from . import (
    beit,
    convnext,
    densenet,
    efficientnet,
    eva,
    mlp_mixer,
    regnet,
    resnet,
    resnetv2,
    sequential,
    swin_transformer,
    swin_transformer_v2,
    vision_transformer,
)
from ._family import Absorption as Absorption
from ._family import Binding as Binding
from ._family import Family as Family

FAMILIES: tuple[Family, ...] = (
    resnet.FAMILY,
    resnetv2.FAMILY,
    efficientnet.FAMILY,
    regnet.FAMILY,
    densenet.FAMILY,
    convnext.FAMILY,
    vision_transformer.FAMILY,
    eva.FAMILY,
    beit.FAMILY,
    swin_transformer.FAMILY,
    swin_transformer_v2.FAMILY,
    mlp_mixer.FAMILY,
    sequential.FAMILY,
)


def supported() -> str:
    """What ``bind`` knows, for messages and documents."""
    return "; ".join(family.describe() for family in FAMILIES)
