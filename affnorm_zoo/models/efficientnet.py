"""EfficientNets and MobileNetV2 with every convolutional normaliser: ``efficientnet_b0_patchnorm``."""

from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.efficientnet import EfficientNet

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedEfficientNet(Normalized, EfficientNet):
    """timm's EfficientNet with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`."""

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        efficientnet_init_weights(self)


ARCHITECTURES = (
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_lite0",
    "tf_efficientnet_b0", "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "efficientnetv2_rw_s",
    "mobilenetv2_050", "mobilenetv2_100", "mnasnet_100",
)  # fmt: skip

__all__ = ["NormalizedEfficientNet"]
default_cfgs = model_cfgs(ARCHITECTURES)
register_models(__name__, NormalizedEfficientNet, ARCHITECTURES)
