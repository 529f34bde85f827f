"""RegNets with every convolutional normaliser: ``regnety_004_patchnorm``."""

from functools import partial

from timm.models import named_apply
from timm.models.regnet import RegNet, _init_weights

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedRegNet(Normalized, RegNet):
    """timm's RegNet with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`."""

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule."""
        named_apply(partial(_init_weights, zero_init_last=False), self)  # there is no last norm to start at zero


ARCHITECTURES = (
    "regnetx_002", "regnetx_004", "regnetx_008", "regnetx_016", "regnetx_032",
    "regnety_002", "regnety_004", "regnety_008", "regnety_016", "regnety_032",
)  # fmt: skip

__all__ = ["NormalizedRegNet"]
default_cfgs = model_cfgs(ARCHITECTURES)
register_models(__name__, NormalizedRegNet, ARCHITECTURES)
