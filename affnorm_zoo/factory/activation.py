"""Which activation a module computes, in the words of :mod:`affnorm_zoo.functional.activation`."""

from collections.abc import Callable

from timm.layers import activations as timm_activations
from torch import nn

from affnorm_zoo.functional.activation import LEAKY_SLOPE

_NAMES: dict[type[nn.Module], tuple[str, Callable[..., bool]]] = {
    nn.ReLU: ("relu", lambda _: True),
    nn.LeakyReLU: ("leaky_relu", lambda module: module.negative_slope == LEAKY_SLOPE),
    nn.GELU: ("gelu", lambda module: module.approximate == "none"),
    timm_activations.GELU: ("gelu", lambda _: True),
    nn.SiLU: ("silu", lambda _: True),
    timm_activations.Swish: ("silu", lambda _: True),
    nn.Hardswish: ("hard_swish", lambda _: True),
    timm_activations.HardSwish: ("hard_swish", lambda _: True),
}


def activation_name(module: nn.Module) -> str:
    """``"relu"``, ``"silu"`` and so on; ``"none"`` for what is no activation of this list, to the bit."""
    name, is_standard = _NAMES.get(type(module), ("none", lambda _: True))
    return name if is_standard(module) else "none"
