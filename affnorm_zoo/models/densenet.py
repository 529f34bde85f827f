"""DenseNets with every convolutional normaliser: ``densenet121_patchnorm``."""

from timm.models.densenet import DenseNet
from torch import nn

from affnorm_zoo.models._normalized import Normalized, model_cfgs, register_models


class NormalizedDenseNet(Normalized, DenseNet):
    """timm's DenseNet with a divergence-free normaliser in place of its norms; see :meth:`Normalized.build`.

    The convolutions that read a norm take its place; the last norm becomes an L2 norm over the channels.
    """

    def init_plain_weights(self) -> None:
        """Initialise timm's layers by timm's rule, which is written into the constructor there."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


ARCHITECTURES = ("densenet121", "densenet169", "densenet201")

__all__ = ["NormalizedDenseNet"]
default_cfgs = model_cfgs(ARCHITECTURES)
register_models(__name__, NormalizedDenseNet, ARCHITECTURES)
