"""PatchNorm on inputs from which a slow mean is taken. The construction is ours, not the paper's.

A step on a batch moves z_i by -η Σ_j (⟨x_i, x_j⟩ + 1) g_j. PatchNorm makes the term j = i uniform. The other terms, by
which samples move each other, grow with the mean of the inputs, and behind a ReLU that mean is large. Subtracting the
mean leaves the term j = i uniform.
"""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from affnorm_zoo.layers.patch_norm import PatchNormConv2d, PatchNormConv2dSame
from affnorm_zoo.registry import NormalizerSpec, register_normalizer

SLOWEST = 0.01  # weight of a new batch in the mean, after 100 of them


@register_notrace_module
class CentredPatchNormConv2d(PatchNormConv2d):
    """:class:`PatchNormConv2d` on inputs from which a mean per channel is taken, (N, C_in, H, W) to (N, C_out, H', W').

        z_p = c (W∗(x - μ) + κ b)_p / √(‖(x - μ)_p‖² + κ²)

    Padded positions count as μ. The result for a batch never depends on the batch itself: in training the layer uses
    the mean of the batches before it, and then updates it. In evaluation it uses the mean of the last training step.
    The first 100 batches have equal weight, each further one has 1/100.

    Buffers, in the state dict: ``mean`` (C_in,), which is used; ``next_mean`` (C_in,), with the last batch in it;
    ``num_batches``. All are zero at first, which is PatchNorm without a shift. DDP sends the buffers of the first
    process to all before each forward pass, 8 bytes per input channel; the mean then is that of its batches.

    Gradient checkpointing runs a forward pass again in the backward. It finds the same mean, unless other forward
    passes in training came between.
    """

    is_fixed_map = False
    in_channels: int
    mean: Tensor
    next_mean: Tensor
    num_batches: Tensor

    def reset_parameters(self) -> None:
        """Draw the weight as for :class:`PatchNormConv2d`, and reset the mean."""
        super().reset_parameters()
        self._reset_mean()

    def adopt(self, layer: nn.Module) -> None:
        super().adopt(layer)
        self._reset_mean()

    def _reset_mean(self) -> None:
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        for name in ("mean", "next_mean"):
            self.register_buffer(name, torch.zeros(self.in_channels, device=self.weight.device, dtype=dtype))
        self.register_buffer("num_batches", torch.zeros((), device=self.weight.device, dtype=torch.int64))

    def adapt_inputs(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """As for every bound layer; each new channel gets the average of the means."""
        means = {name: parameters[name] for name in ("mean", "next_mean") if name in parameters}
        averages = {name: mean.mean().expand(self.in_channels).clone() for name, mean in means.items()}
        return super().adapt_inputs(parameters) | averages

    def prepare_input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As for every PatchNorm; in training this also updates the mean."""
        if torch.jit.is_scripting():
            pass  # scripted, the mean stays
        else:  # TorchScript skips code only in an else branch
            if self.training and x.numel() > 0 and not _runs_again():
                self._follow(x)
        shift = self.mean.clone()  # the buffer changes before the backward if the layer runs again
        if self.adds_padding():
            return self.pad(x - shift.to(x.dtype).view(-1, 1, 1)), None
        return x, shift

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        self.mean.copy_(self.next_mean)
        self.num_batches.add_(1)
        batch = x.mean((-4, -2, -1) if x.dim() == 4 else (-2, -1), dtype=self.mean.dtype)
        self.next_mean.lerp_(batch, self.num_batches.to(self.mean.dtype).reciprocal().clamp_min(SLOWEST))


def _runs_again() -> bool:
    """Whether a backward pass runs this forward pass, as gradient checkpointing does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@register_notrace_module
class CentredPatchNormConv2dSame(CentredPatchNormConv2d, PatchNormConv2dSame):
    """:class:`PatchNormConv2dSame` on inputs from which a mean per channel is taken."""


register_normalizer(
    NormalizerSpec(
        name="patchnorm_c",
        summary="affine_like per patch of a convolution, on inputs from which a slow mean per channel is taken",
        formula="c (W∗(x-μ) + κ b) / √(‖(x-μ)_p‖² + κ²)",
        conv=CentredPatchNormConv2d,
        conv_same=CentredPatchNormConv2dSame,
    )
)
