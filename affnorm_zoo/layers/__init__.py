from . import baselines as baselines
from .affine_like import AffineLikeLinear as AffineLikeLinear
from .l2_norm import L2Norm as L2Norm
from .l2_norm import L2Norm2d as L2Norm2d
from .norm_like import NormLikeLinear as NormLikeLinear
from .patch_norm import PatchNormConv2d as PatchNormConv2d
from .patch_norm import PatchNormConv2dSame as PatchNormConv2dSame
