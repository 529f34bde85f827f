"""The roll call of families, in the order in which messages name them."""

from . import resnet, sequential, vision_transformer
from ._family import Absorption as Absorption
from ._family import Binding as Binding
from ._family import Family as Family

FAMILIES: tuple[Family, ...] = (resnet.FAMILY, vision_transformer.FAMILY, sequential.FAMILY)


def supported() -> str:
    """What ``bind`` knows, for messages and documents."""
    return "; ".join(family.describe() for family in FAMILIES)
