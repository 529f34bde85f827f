"""Which PatchNorm an op computes, and where its gradient comes from."""

from typing import NamedTuple

import torch
from torch import Tensor

from affnorm_zoo.functional.activation import FROM_INPUT

IntPair = tuple[int, int]


class PatchMap(NamedTuple):
    """Which map the op computes: the other arguments of ``patch_norm_map``, in their order.

    Without properties, which torch.compile of torch 2.9 does not find in a named tuple.
    """

    stride: IntPair
    padding: IntPair
    dilation: IntPair
    groups: int
    c: float
    kappa: float
    norm_like: bool
    activation: str

    def geometry(self) -> tuple[IntPair, IntPair, IntPair, int]:
        """The last arguments of a convolution."""
        return self.stride, self.padding, self.dilation, self.groups

    def inner_kappa(self) -> float | None:
        """The factor of a bias inside the quotient, or None if the bias is added after the division."""
        return None if self.norm_like else self.kappa

    def is_pointwise(self, weight: Tensor) -> bool:
        """Whether every position reads a single pixel, and no pixel is read by two positions."""
        return weight.shape[2] == 1 and weight.shape[3] == 1 and self.padding == (0, 0)

    def needs_inner(self, weight: Tensor) -> bool:
        """Whether the gradient needs the convolution's own output W∗x."""
        return self.activation in FROM_INPUT or (self.activation == "none" and not self.is_pointwise(weight))

    def gives_z(self, weight: Tensor, dtype: torch.dtype, shortcut: Tensor) -> bool:
        """Whether the gradient of relu(z + shortcut) takes z from the output, by subtracting the shortcut.

        Only for kernels that need z, and not in half precision: the output is rounded in proportion to the shortcut,
        which may be any times as large as z, so that 2⁻⁸ of it can be all of z. In float32, 1,000 times as large still
        leaves z to 2⁻¹⁴.
        """
        wide = dtype in (torch.float32, torch.float64)
        return self.needs_inner(weight) and wide and shortcut.dtype == dtype
