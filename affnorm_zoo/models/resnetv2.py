"""ResNets with pre-activation and every convolutional normaliser: ``resnetv2_50_patchnorm``."""

from timm.models.resnetv2 import ResNetV2

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedResNetV2(Normalized, ResNetV2):
    """timm's ResNetV2 with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The convolutions that read a norm take its place; the stem, which reads none, stays plain, and the last norm becomes
    an L2 norm over the channels.
    """

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        ResNetV2.init_weights(self, zero_init_last=False)


ARCHITECTURES = ("resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_50d", "resnetv2_101")

__all__ = ["NormalizedResNetV2"]
default_cfgs = model_cfgs(ARCHITECTURES)
register_models(__name__, NormalizedResNetV2, ARCHITECTURES)
