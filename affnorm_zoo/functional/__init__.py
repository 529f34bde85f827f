from .activation import apply_activation as apply_activation
from .affine_like import affine_like_linear as affine_like_linear
from .l2_norm import l2_norm as l2_norm
from .norm_like import norm_like_linear as norm_like_linear
from .patch_norm import patch_norm_conv2d as patch_norm_conv2d
from .scale import Scale as Scale
from .scale import resolve_scale as resolve_scale
from .weight_standardization import standardize_weight as standardize_weight
