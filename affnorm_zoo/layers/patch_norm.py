import math

import torch
import torch.fx
from timm.layers import pad_same, register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from affnorm_zoo.functional.activation import check_activation
from affnorm_zoo.functional.patch_norm import VARIANTS, split_padding
from affnorm_zoo.layers._scaled import Scaled
from affnorm_zoo.ops.patch_norm import patch_norm
from affnorm_zoo.ops.weight_standardization import standardize
from affnorm_zoo.registry import PAPER, NormalizerSpec, register_normalizer

torch.fx.wrap("patch_norm")  # a traced graph calls the op, and so keeps its gradient
torch.fx.wrap("standardize")

# ReLU halves the second moment of a symmetric input
RELU_GAIN = math.sqrt(2)
# a standardised kernel sums to zero and so does not see the mean of its input: what is left of a ReLU's output is its
# variance, 1/2 - 1/(2π) (Brock et al. 2021, https://arxiv.org/abs/2101.08692, section 4.1)
STANDARDIZED_RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


@register_notrace_module
class PatchNormConv2d(Scaled, nn.Conv2d):
    """Convolution whose every output is divided by the length of its patch, (N, C_in, H, W) to (N, C_out, H', W').

        affine_like:  z_p = c (W∗x + κ b)_p / √(‖x_p‖² + κ²)
        norm_like:    z_p = c (W∗x)_p / ‖x_p‖ + b

    See :func:`affnorm_zoo.functional.patch_norm_conv2d`. Without ``gain`` its state dict is that of
    :class:`torch.nn.Conv2d`. The weight starts so that, behind a ReLU of unit second moment, the next ReLU's second
    moment is 1 again. Padding of any mode counts towards the patch it pads.

    Args:
        in_channels, ..., dtype: as in :class:`torch.nn.Conv2d`.
        variant: ``"affine_like"`` or ``"norm_like"``.
        scale: ``"unit"``, ``"rms"``, ``"rms4"`` or a pair (c, κ).
        activation: ``"none"``, ``"relu"`` or ``"leaky_relu"``, applied to the output.
        gain: learn a factor per output channel, ``gain`` (C_out,), on the weight. The factor of the gradient step is
            then uniform over samples and positions, but scaled by gain² in each channel.
        weight_standardization: standardise each output channel's kernel to mean 0 and variance 1/c². The gradient
            step then acts through the standardisation, so its factor is only approximately uniform.
        recompute: in the backward, convolve once more instead of keeping the convolution's output; only a kernel
            larger than 1x1 without an activation keeps it.
    """

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
        check_activation(activation)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.variant = variant
        self.norm_like = variant == "norm_like"
        self.activation = activation
        self.weight_standardization = weight_standardization
        self.recompute = recompute
        self.fan_in = self.weight[0].numel()
        self._set_scale(scale, self.fan_in)
        if padding_mode == "zeros":
            self.pads, self.conv_padding = split_padding(self.padding, self.kernel_size, self.stride, self.dilation)
            self.pad_mode = "constant"
        else:
            left, right, top, bottom = self._reversed_padding_repeated_twice
            self.pads, self.conv_padding = (left, right, top, bottom), (0, 0)
            self.pad_mode = padding_mode
        new_gain = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if gain else None
        self.register_parameter("gain", new_gain)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from a normal distribution that keeps the second moment; bias 0.

        The standard deviation is g √(1 + κ²/n) / c, with g = √2 for the ReLU before the layer; under weight
        standardisation the gain takes that part, with g = √(2 / (1 - 1/π)).
        """
        if not hasattr(self, "kappa"):
            return  # the parent's constructor calls this before the scale is known
        kappa = 0.0 if self.norm_like else self.kappa
        compensation = math.sqrt(1 + kappa**2 / self.fan_in)  # for the κ² in the divisor, at a mean square of 1
        if self.weight_standardization:
            nn.init.normal_(self.weight, std=1 / math.sqrt(self.fan_in))
            gain = STANDARDIZED_RELU_GAIN * compensation
        else:
            nn.init.normal_(self.weight, std=RELU_GAIN * compensation / self.c)
            gain = 1.0
        if self.gain is not None:
            nn.init.constant_(self.gain, gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def damp(self, factor: float) -> None:
        """Multiply the response, bias aside, by ``factor``: through the gain if there is one, else the weight."""
        (self.weight if self.gain is None else self.gain).mul_(factor)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 the name is nn.Conv2d's
        return patch_norm(
            self.pad(input),
            self.effective_weight(),
            self.bias,
            self.stride,
            self.conv_padding,
            self.dilation,
            self.groups,
            self.c,
            self.kappa,
            self.norm_like,
            self.activation,
            self.recompute,
        )

    def pad(self, x: Tensor) -> Tensor:
        """Add the part of the padding that the convolution cannot: a mode other than zeros, or uneven sides."""
        if max(self.pads) > 0:
            return F.pad(x, self.pads, self.pad_mode)
        return x

    def effective_weight(self) -> Tensor:
        """The kernel that the convolution sees: W, standardised and multiplied by the gain where asked for."""
        weight = self.weight
        if self.weight_standardization:
            return standardize(weight, self.gain, self.c, 1e-6)
        if self.gain is not None:
            return weight * self.gain.reshape(-1, 1, 1, 1)
        return weight

    @torch.no_grad()
    def reparameterize(self) -> None:
        """For inference: put the kernel that the convolution sees in the weight's place, and drop the gain.

        The outputs stay the same to the bit, without the work on the weights in each forward pass.
        :func:`timm.utils.reparameterize_model` calls this throughout a model, whose state dict then is that of the
        model with plain ``patchnorm``.
        """
        self.weight.copy_(self.effective_weight())
        self.weight_standardization = False
        self.gain = None

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"variant={self.variant}", f"scale={self.scale!r}"]
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        if self.gain is not None:
            parts.append("gain=True")
        if self.weight_standardization:
            parts.append("weight_standardization=True")
        return ", ".join(parts)


@register_notrace_module
class PatchNormConv2dSame(PatchNormConv2d):
    """:class:`PatchNormConv2d` with TensorFlow's "same" padding, the twin of :class:`timm.layers.Conv2dSame`.

    The output has ⌈H / stride⌉ rows; the padding depends on the input's size, and ``padding`` is not used.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0, *args, **kwargs) -> None:  # noqa: ARG002
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, *args, **kwargs)

    def pad(self, x: Tensor) -> Tensor:
        return pad_same(x, self.kernel_size, self.stride, self.dilation)


for _name, _summary, _formula, _options in (
    ("patchnorm", "affine_like per patch of a convolution", "c (W∗x + κ b) / √(‖x_p‖² + κ²)", {}),
    ("patchnorm_l2", "norm_like per patch of a convolution", "c (W∗x) / ‖x_p‖ + b", {"variant": "norm_like"}),
    (
        "patchnorm_ws",
        "affine_like per patch, with scaled weight standardisation and a gain per channel",
        "c (Ŵ∗x + κ b) / √(‖x_p‖² + κ²)",
        {"weight_standardization": True, "gain": True},
    ),
):
    register_normalizer(
        NormalizerSpec(
            name=_name,
            summary=_summary,
            formula=_formula,
            paper=PAPER,
            conv=PatchNormConv2d,
            conv_same=PatchNormConv2dSame,
            options=_options,
        )
    )
