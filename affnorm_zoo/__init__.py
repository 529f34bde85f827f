"""Divergence-free normalisers for timm models; importing this package registers its models with timm."""

from . import _requirements as _requirements  # stays first: names what is missing before an import below fails
from . import models as models
from ._version import __version__ as __version__
from .conversion import Conversion as Conversion
from .conversion import convert as convert
from .factory import bind as bind
from .factory import norm_layer as norm_layer
from .factory import slot_norms as slot_norms
from .functional import Scale as Scale
from .functional import affine_like_linear as affine_like_linear
from .functional import l2_norm as l2_norm
from .functional import norm_like_linear as norm_like_linear
from .functional import patch_norm_conv2d as patch_norm_conv2d
from .layers import AffineLikeLinear as AffineLikeLinear
from .layers import L2Norm as L2Norm
from .layers import L2Norm2d as L2Norm2d
from .layers import NormLikeLinear as NormLikeLinear
from .layers import PatchNormConv2d as PatchNormConv2d
from .layers import PatchNormConv2dSame as PatchNormConv2dSame
from .registry import NormalizerSpec as NormalizerSpec
from .registry import get_normalizer as get_normalizer
from .registry import list_normalizers as list_normalizers
from .registry import register_normalizer as register_normalizer


def __getattr__(name: str) -> object:
    """Bring in the Hub's side, and its client with it, only when it is asked for."""
    if name in ("load", "list_pretrained"):
        from . import hub

        return getattr(hub, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
