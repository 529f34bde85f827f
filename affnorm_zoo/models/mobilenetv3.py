"""MobileNetV3 and V4 with every convolutional normaliser: ``mobilenetv3_small_100_patchnorm``."""

from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.mobilenetv3 import MobileNetV3

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedMobileNetV3(Normalized, MobileNetV3):
    """timm's MobileNetV3 with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The convolution behind the pooling of a MobileNetV3 has no norm, and stays a plain one.
    """

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        efficientnet_init_weights(self)


ARCHITECTURES = (
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "tf_mobilenetv3_large_100",
    "mobilenetv4_conv_small", "mobilenetv4_conv_medium",
)  # fmt: skip

__all__ = ["NormalizedMobileNetV3"]
default_cfgs = model_cfgs(ARCHITECTURES)
register_models(__name__, NormalizedMobileNetV3, ARCHITECTURES)
