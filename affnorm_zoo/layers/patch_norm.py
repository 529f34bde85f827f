import math
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.layers import register_notrace_module
from timm.layers.padding import pad_same_arg
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from affnorm_zoo.functional.activation import ACTIVATIONS, check_activation
from affnorm_zoo.functional.patch_norm import check_variant
from affnorm_zoo.functional.weight_standardization import standardize_weight
from affnorm_zoo.layers._bound import BoundLayer, draw_normal
from affnorm_zoo.layers._geometry import GEOMETRY, EditedInPlace
from affnorm_zoo.ops.patch_norm import patch_norm
from affnorm_zoo.ops.weight_standardization import effective_weight
from affnorm_zoo.registry import PAPER, NormalizerSpec, register_normalizer

torch.fx.wrap("patch_norm")  # a traced graph calls the op, and so keeps its gradient

RELU_GAIN = math.sqrt(2)  # ReLU halves the second moment of a symmetric input
# a standardised kernel sums to zero and so does not see the mean of its input: what is left of a ReLU's output is its
# variance, 1/2 - 1/(2π) (Brock et al. 2021, https://arxiv.org/abs/2101.08692, section 4.1)
STANDARDIZED_RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


@register_notrace_module
class PatchNormConv2d(EditedInPlace):
    """Convolution whose every output is divided by the length of its patch, (N, C_in, H, W) to (N, C_out, H', W').

        affine_like:  z_p = c (W∗x + κ b)_p / √(‖x_p‖² + κ²)
        norm_like:    z_p = c (W∗x)_p / ‖x_p‖ + b

    See :func:`affnorm_zoo.functional.patch_norm_conv2d`. Without ``gain`` its state dict is that of
    :class:`torch.nn.Conv2d`. The weight starts so that, behind a ReLU of unit second moment, the next ReLU's second
    moment is 1 again. Padding of any mode counts towards the patch it pads. Stride, padding, dilation and padding mode
    may be changed in place.

    Args:
        in_channels, ..., dtype: as in :class:`torch.nn.Conv2d`.
        variant: ``"affine_like"`` or ``"norm_like"``.
        scale: ``"unit"``, ``"rms"``, ``"rms4"`` or a pair (c, κ).
        activation: applied to the output; one of :data:`affnorm_zoo.functional.activation.ACTIVATIONS`.
        gain: learn a factor per output channel, ``gain`` (C_out,), on the weight. The factor of the gradient step is
            then uniform over samples and positions, but scaled by gain² in each channel.
        weight_standardization: standardise each output channel's kernel to mean 0 and variance 1/c². The gradient
            step then acts through the standardisation, so its factor is only approximately uniform.
        recompute: in the backward, convolve once more instead of keeping the convolution's output. Only two kinds of
            layers keep it: those with SiLU, hard swish or GELU, and kernels larger than 1x1 without an activation.
    """

    channel_axis = 1
    like = nn.Conv2d
    output_activations = ACTIVATIONS[1:]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        variant: str = "affine_like",
        scale: str | tuple[float, float] = "unit",
        activation: str = "none",
        gain: bool = False,
        weight_standardization: bool = False,
        recompute: bool = False,
    ) -> None:
        check_variant(variant)
        check_activation(activation)
        super().__init__()
        # torch's own checks and defaults, without memory
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        for name in ("in_channels", "out_channels", "groups", *GEOMETRY, "transposed", "output_padding"):
            setattr(self, name, getattr(plain, name))
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty(plain.weight.shape))
        self.register_parameter("bias", nn.Parameter(empty(out_channels)) if bias else None)
        self.variant = variant
        self.norm_like = variant == "norm_like"
        self.activation = activation
        self.weight_standardization = weight_standardization
        self.recompute = recompute
        self.fan_in = self.weight[0].numel()
        self._set_scale(scale, self.fan_in)
        self._split_padding()
        self.register_parameter("gain", nn.Parameter(empty(out_channels)) if gain else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from a normal distribution that keeps the second moment; bias 0.

        The standard deviation is g √(1 + κ²/n) / c, with g = √2 for the ReLU before the layer; under weight
        standardisation the gain takes that part, with g = √(2 / (1 - 1/π)).
        """
        self.check_writable()
        kappa = 0.0 if self.norm_like else self.kappa
        compensation = math.sqrt(1 + kappa**2 / self.fan_in)  # for the κ² in the divisor, at a mean square of 1
        std, gain = RELU_GAIN * compensation / self.c, 1.0
        if self.weight_standardization:
            std, gain = 1 / math.sqrt(self.fan_in), STANDARDIZED_RELU_GAIN * compensation
        draw_normal(self.weight, std=std)
        if self.gain is not None:
            nn.init.constant_(self.gain, gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``: through the gain if there is one, else the weight."""
        self.check_writable()
        (self.weight if self.gain is None else self.gain).mul_(factor)

    @classmethod
    def replacing(cls, layer: nn.Module, **options: Any) -> BoundLayer:
        """As for every bound layer; a convolution whose output would have to be kept recomputes it."""
        return super().replacing(layer, **{"recompute": True, **options})

    def adapt_inputs(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """As for every bound layer; a standardised kernel would be standardised again.

        It is replaced by its effective kernel, and the gain by that kernel's standard deviation.
        """
        adapted = super().adapt_inputs(parameters)
        if not self.weight_standardization:
            return adapted
        weight, source = parameters["weight"], parameters["weight"].shape[1] * self.groups
        source_c = self.c * math.sqrt(source / self.in_channels)
        effective = standardize_weight(weight, parameters.get("gain"), c=source_c)
        summed = adapt_input_conv(self.in_channels, effective, base_chans=source)
        deviation = torch.std(summed.flatten(1), dim=1, correction=0)
        return {**adapted, "weight": effective, "gain": (self.c * deviation).to(weight.dtype)}

    def inner_kappa(self) -> float | None:
        return None if self.norm_like or self.bias is None else self.kappa

    def is_plain(self) -> bool:
        return self.gain is None and not self.weight_standardization

    def __call__(self, *args, **kwargs) -> Tensor:
        """Run as any module does. timm writes into the output by ``x += shortcut``; what hooks hold stays unchanged."""
        output = super().__call__(*args, **kwargs)
        watched = self._forward_hooks or self._backward_hooks or self._backward_pre_hooks
        return output.clone() if watched or _has_any_global_hook() else output

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is nn.Conv2d's
        return self.forward_residual(input, None)

    def forward_residual(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """relu(z + shortcut) as one op, for a layer without an activation of its own; no hook of the layer runs.

        Args:
            x: as in ``forward``.
            shortcut: of the output's shape; None gives z with the layer's own activation.
        """
        padded, shift = self.prepare_input(x)
        return patch_norm(
            padded, self.weight, self.bias, self.stride, self.conv_padding, self.dilation, self.groups,
            self.c, self.kappa, self.norm_like, self.activation, self.recompute, self.gain,
            self.weight_standardization, shortcut, shift,
        )  # fmt: skip

    def prepare_input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The padded input, and what the op has to subtract from it, (C_in,) or None."""
        return self.pad(x), None

    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """The kernel that the convolution uses, detached: W, standardised and times the gain if so set."""
        return effective_weight(self.weight, self.gain, self.c, self.weight_standardization)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """For inference: put the kernel that the convolution sees in the weight's place, and drop the gain.

        The outputs stay the same to the bit. :func:`timm.utils.reparameterize_model` calls this throughout a model,
        whose state dict then is that of the model with plain ``patchnorm``.

        Raises:
            ValueError: a parameter is computed from others, as by pruning; see the message.
        """
        self.check_writable()
        self.weight.copy_(self.effective_weight())
        self.weight_standardization = False
        self.gain = None

    def extra_repr(self) -> str:
        parts = [nn.Conv2d.extra_repr(self), f"variant={self.variant}", f"scale={self.scale!r}"]
        parts += [f"activation={self.activation}"] * (self.activation != "none")
        parts += ["gain=True"] * (self.gain is not None) + ["weight_standardization=True"] * self.weight_standardization
        return ", ".join(parts)


@register_notrace_module
class PatchNormConv2dSame(PatchNormConv2d):
    """:class:`PatchNormConv2d` with TensorFlow's "same" padding, the twin of :class:`timm.layers.Conv2dSame`.

    The output has ⌈H / stride⌉ rows; the padding depends on the input's size, and ``padding`` is not used.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,  # noqa: ARG002
        padding_mode="zeros", device=None, dtype=None, **options,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias, padding_mode, device, dtype,
            **options,
        )  # fmt: skip

    def _split_padding(self) -> None:
        """Check the padding; none of it is used."""
        super()._split_padding()
        self.pads, self.conv_padding = (0, 0, 0, 0), (0, 0)

    def adds_padding(self) -> bool:
        return True

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation), self.pad_mode)


for _name, _summary, _formula, _options in (
    ("patchnorm", "affine_like per patch of a convolution", "c (W∗x + κ b) / √(‖x_p‖² + κ²)", {}),
    ("patchnorm_l2", "norm_like per patch of a convolution", "c (W∗x) / ‖x_p‖ + b", {"variant": "norm_like"}),
    ("patchnorm_ws", "affine_like per patch, with scaled weight standardisation and a gain per channel",
     "c (Ŵ∗x + κ b) / √(‖x_p‖² + κ²)", {"weight_standardization": True, "gain": True}),
):  # fmt: skip
    register_normalizer(
        NormalizerSpec(
            name=_name, summary=_summary, formula=_formula, paper=PAPER,
            conv=PatchNormConv2d, conv_same=PatchNormConv2dSame, options=_options,
            reparameterized="patchnorm" if _options.get("weight_standardization") else "",
        )
    )  # fmt: skip
