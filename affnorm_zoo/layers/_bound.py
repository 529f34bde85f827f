"""What all divergence-free layers with parameters share."""

import math
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from affnorm_zoo.layers._flops import count_as
from affnorm_zoo.layers._scaled import Scaled

_FUSION = torch.nn.utils.fusion.__name__
_CONV_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip


class BoundLayer(Scaled, nn.Module):
    """A linear layer or a convolution whose result is divided by a norm.

    It is not a subclass of :class:`torch.nn.Linear` or :class:`torch.nn.Conv2d`, but has their parameters and
    attributes. Quantisers, adapters and converters look for these classes and copy weight and bias into one of their
    own. They would silently drop the quotient.

    The constructor takes the arguments of ``like``, ``scale`` and the options of its spec. A layer that can take over
    activations also takes ``activation`` or ``input_activation``. Parameters are ``weight``, ``bias`` (or None) and
    what a subclass adds. Other code uses the attributes and methods below and never tests for the class.
    """

    like: type[nn.Module]  # torch's layer of the same size
    channel_axis: int  # of the output
    weight: Tensor
    output_activations: tuple[str, ...] = ()  # what it can apply to its output
    input_activations: tuple[str, ...] = ()  # what it can apply to its input
    is_fixed_map = True  # whether only the optimiser changes the layer's map

    def reset_parameters(self) -> None:
        """Draw the parameters."""
        raise NotImplementedError

    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``."""
        raise NotImplementedError

    def inner_kappa(self) -> float | None:
        """The κ that multiplies the bias inside the quotient, or None without a bias there."""
        raise NotImplementedError

    def is_plain(self) -> bool:
        """Whether the product takes ``weight`` as it is."""
        return True

    @classmethod
    def replacing(cls, layer: nn.Module, **options: Any) -> "BoundLayer":
        """Build the layer that replaces a plain one of the same size and takes its parameters.

        Args:
            layer: a linear layer or a convolution of torch or timm. If it has no bias, the new layer still gets one.
            options: further arguments of the constructor.
        """
        names = _CONV_ARGUMENTS if isinstance(layer, nn.Conv2d) else ("in_features", "out_features")
        sizes = {name: getattr(layer, name) for name in names}
        bound = cls(**sizes, device="meta", dtype=layer.weight.dtype, **options)
        bound.adopt(layer)
        return bound

    def adopt(self, layer: nn.Module) -> None:
        """Take over the parameter objects of a plain layer; missing ones are initialised by this layer's own rule.

        The layer is on the meta device, so that only new parameters are drawn.
        """
        own = dict(self.named_parameters())
        existing = {name: getattr(layer, name) for name in own if getattr(layer, name, None) is not None}
        for name in own.keys() - existing.keys():
            setattr(self, name, nn.Parameter(torch.empty_like(own[name], device=layer.weight.device)))
        if len(existing) < len(own):
            self.reset_parameters()
        for name, parameter in existing.items():
            setattr(self, name, parameter)

    def adapt_inputs(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Prepare parameters that belong to another number of input channels, before timm adapts their kernel.

        timm sums or repeats the kernel over the channels. A κ in proportion to √n, as in the "rms" scales, then keeps
        the quotient. The map multiplies the bias by κ, so the bias is divided by the change of κ.

        Args:
            parameters: of a layer like this one, by name, with another size of the weight's second axis.
        """
        if self.inner_kappa() is None or "bias" not in parameters:
            return parameters
        change = math.sqrt(parameters["weight"].shape[1] / self.weight.shape[1])
        return {**parameters, "bias": parameters["bias"] * change}

    def check_writable(self) -> None:
        """See :func:`check_writable`; for all parameters."""
        check_writable(self)

    def apply(self, fn: Callable[[nn.Module], None]) -> "BoundLayer":
        """As in every module. Flop counters come this way; they look layers up by their exact type."""
        count_as(type(self), self.like)
        return super().apply(fn)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight" and _comes_from_fusion(sys._getframe(1)):
            raise TypeError(
                f"{type(self).__name__} cannot be fused with a batch norm: its output is a quotient, and the norm's "
                "shift does not go inside; leave the batch norm as it is"
            )
        super().__setattr__(name, value)


def _comes_from_fusion(frame: FrameType | None) -> bool:
    """Whether torch's fusion with a batch norm sets an attribute; it copies a layer without a check of its type."""
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == _FUSION


def draw_normal(parameter: Tensor, std: float) -> None:
    """Draw from N(0, std²), in place. On the meta device, where torch would take a millisecond, do nothing."""
    if not parameter.is_meta:
        nn.init.normal_(parameter, std=std)


def check_writable(module: nn.Module, names: tuple[str, ...] = ("weight", "bias", "gain")) -> None:
    """Refuse a module that computes one of these parameters from others: writing there would have no effect.

    Raises:
        ValueError: one is computed, by pruning, weight_norm, spectral_norm or another parametrization.
    """
    for name in names:
        if name not in module._parameters and isinstance(getattr(module, name, None), Tensor):
            utils = "torch.nn.utils"
            raise ValueError(
                f"{name} of {type(module).__name__} is computed from other tensors, so that writing into it would be "
                f"lost: first make it a parameter, by {utils}.parametrize.remove_parametrizations(layer, {name!r}), "
                f"{utils}.prune.remove(layer, {name!r}), {utils}.remove_weight_norm(layer, {name!r}) or "
                f"{utils}.remove_spectral_norm(layer, {name!r}), whichever it was made by"
            )


def affine_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of the linear layers and convolutions of ``model``, plain ones and ours."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | BoundLayer):
            yield name, module


def channel_axis(layer: nn.Module) -> int:
    """The axis of an affine layer's output that holds the channels."""
    return layer.channel_axis if isinstance(layer, BoundLayer) else 1 if isinstance(layer, nn.Conv2d) else -1
