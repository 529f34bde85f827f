"""Pretrained stems for another number of input channels, without changing their response.

timm sums or repeats the kernel over the channels, which keeps W∗x for a grey image. The patch's length changes too:
‖x_p‖² grows with the number of channels m. The maps are homogeneous, so that c and κ in proportion to √m keep the
quotient exactly. The "rms" scale has that by itself; the "unit" scale of a stem is multiplied by √(m/3).
"""

import math

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from affnorm_zoo.functional import standardize_weight
from affnorm_zoo.layers import PatchNormConv2d

BASE_CHANNELS = 3


def stem_scale(norm_scale: str, in_chans: int) -> str | tuple[float, float]:
    """Scale of a stem with ``in_chans`` input channels."""
    if norm_scale == "unit" and in_chans != BASE_CHANNELS:
        factor = math.sqrt(in_chans / BASE_CHANNELS)
        return (factor, factor)
    return norm_scale


def adapt_stem(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Prepare a checkpoint for timm's change of the input channels; a ``pretrained_filter_fn``.

    The kernel itself is left to timm, which adapts it after this. The bias of affine_like is multiplied by κ, and so
    divided by its change. A standardised kernel would be standardised anew: it is replaced by its effective kernel,
    and the gain by that kernel's deviation.
    """
    name = model.pretrained_cfg["first_conv"]
    stem = model.get_submodule(name)
    weight = state_dict.get(f"{name}.weight")
    if not isinstance(stem, PatchNormConv2d) or weight is None or weight.shape[1:] == stem.weight.shape[1:]:
        return state_dict
    state_dict = dict(state_dict)
    source, target = weight.shape[1] * stem.groups, stem.in_channels
    if not stem.norm_like and f"{name}.bias" in state_dict:
        state_dict[f"{name}.bias"] = state_dict[f"{name}.bias"] * math.sqrt(source / target)
    if stem.weight_standardization:
        source_c = stem.c * math.sqrt(source / target)
        effective = standardize_weight(weight, state_dict.get(f"{name}.gain"), c=source_c)
        adapted = adapt_input_conv(target, effective, base_chans=source)
        deviation = torch.std(adapted.flatten(1), dim=1, correction=0)
        state_dict[f"{name}.weight"] = effective
        state_dict[f"{name}.gain"] = (stem.c * deviation).to(weight.dtype)
    return state_dict
