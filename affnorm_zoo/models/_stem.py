"""Pretrained stems for another number of input channels, without changing their response.

timm sums or repeats the kernel over the channels, which keeps W∗x for a grey image. The patch's length changes too:
‖x_p‖² grows with the number of channels m. The maps are homogeneous, so that c and κ in proportion to √m keep the
quotient exactly. The "rms" scale has that by itself; the "unit" scale of a stem is multiplied by √(m/3).
"""

import math
from typing import Any

from torch import Tensor, nn

from affnorm_zoo.layers import BoundLayer

BASE_CHANNELS = 3


def stem_scale(norm_scale: str, in_chans: int) -> str | tuple[float, float]:
    """Scale of a stem with ``in_chans`` input channels."""
    if norm_scale == "unit" and in_chans != BASE_CHANNELS:
        factor = math.sqrt(in_chans / BASE_CHANNELS)
        return (factor, factor)
    return norm_scale


def adapt_stem(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Prepare a checkpoint for timm's change of the input channels; a ``pretrained_filter_fn``.

    The kernel itself is left to timm, which adapts it after this. What else has to change, the stem knows itself.
    """
    cfg: Any = model.pretrained_cfg
    name = cfg["first_conv"]
    stem = model.get_submodule(name)
    weight = state_dict.get(f"{name}.weight")
    if not isinstance(stem, BoundLayer) or weight is None or weight.shape[1:] == stem.weight.shape[1:]:
        return state_dict
    own = {key: state_dict[f"{name}.{key}"] for key in stem.state_dict() if f"{name}.{key}" in state_dict}
    return state_dict | {f"{name}.{key}": value for key, value in stem.adapt_inputs(own).items()}
