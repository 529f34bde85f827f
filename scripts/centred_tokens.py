"""Experiment: affine_like on centred tokens, z = c (W(x - μ) + κ b) / √(‖x - μ‖² + κ²), one μ per input feature.

    python scripts/centred_tokens.py configs/sweeps/cifar10_vit_nano_centred.yaml data.path=PATH

``affinelike_c`` takes for μ the mean of the batches before, in training and in evaluation; ``affinelike_shift`` learns
it, from 0. Arguments are those of ``scripts/sweep.py``.
"""

from functools import partial

import torch
from torch import Tensor, nn

from affnorm_zoo.cli.sweep import sweep
from affnorm_zoo.layers.affine_like import AffineLikeLinear
from affnorm_zoo.models import vision_transformer
from affnorm_zoo.models._entrypoints import register_entrypoint
from affnorm_zoo.registry import NormalizerSpec, register_normalizer

SLOWEST = 0.01  # weight of a new batch in the mean, after 100 of them


class ShiftedAffineLikeLinear(AffineLikeLinear):
    """affine_like on inputs (..., in_features) from which a learned μ is taken."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.shift = nn.Parameter(torch.zeros(self.in_features))

    def adopt(self, layer: nn.Module) -> None:
        super().adopt(layer)
        self.shift = nn.Parameter(torch.zeros(self.in_features))

    def divide(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return super().divide(input - self.shift, weight, bias)


class CentredAffineLikeLinear(AffineLikeLinear):
    """The same with the mean of the batches before; the first 100 have equal weight, each further one 1/100."""

    is_fixed_map = False

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self._reset_mean()

    def adopt(self, layer: nn.Module) -> None:
        super().adopt(layer)
        self._reset_mean()

    def _reset_mean(self) -> None:
        for name in ("mean", "next_mean"):
            self.register_buffer(name, torch.zeros(self.in_features))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def divide(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if self.training:
            self._follow(input)
        return super().divide(input - self.mean.clone(), weight, bias)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        self.mean.copy_(self.next_mean)
        self.num_batches.add_(1)
        self.next_mean.lerp_(x.flatten(0, -2).mean(0), max(SLOWEST, 1 / int(self.num_batches)))


for name, layer in (("affinelike_c", CentredAffineLikeLinear), ("affinelike_shift", ShiftedAffineLikeLinear)):
    register_normalizer(
        NormalizerSpec(name=name, summary="on centred tokens", formula="", linear=layer, partner="patchnorm")
    )
    model = f"vit_nano_patch4_32_{name}"
    vision_transformer.default_cfgs[model] = vision_transformer.default_cfgs["vit_nano_patch4_32_affinelike"]
    build = partial(vision_transformer._create, "vit_nano_patch4_32", name)
    register_entrypoint(vision_transformer.__name__, model, "", build)

if __name__ == "__main__":
    sweep()
