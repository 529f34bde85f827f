"""The table of modules that a normaliser may take in: each computes what its name says, and no other is in it."""

import pytest
import torch
from timm.layers import activations, activations_me
from torch import nn

from affnorm_zoo.functional.activation import (
    ACTIVATION_OF,
    ACTIVATIONS,
    FROM_OUTPUT,
    activation_name,
    apply_activation,
)


@pytest.mark.parametrize("kind", ACTIVATION_OF, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_a_module_computes_what_its_name_says(kind):
    z = 4 * torch.randn(200, dtype=torch.float64)
    module = kind()
    torch.testing.assert_close(apply_activation(z, activation_name(module)), module(z.clone()))


def test_every_activation_has_a_module():
    assert {"none", *ACTIVATION_OF.values()} == set(ACTIVATIONS)


class _Doubled(nn.SiLU):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [nn.GELU("tanh"), activations.GELUTanh(), activations.QuickGELU(), nn.LeakyReLU(0.2), nn.Mish(), nn.Hardtanh(),
     activations.HardMish(), activations_me.HardSigmoidMe(), nn.Identity(), _Doubled()],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_other_modules_are_not_taken_in(module):
    assert activation_name(module) == "none"


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_an_output_tells_the_derivative_only_where_the_table_says_so(activation):
    z = torch.linspace(-8, 8, 3201, dtype=torch.float64, requires_grad=True)
    a = apply_activation(z, activation)
    (slope,) = torch.autograd.grad(a.sum(), z)
    # inputs on either side of 0 with the same output, which is not where the function is flat
    same = (a[:, None] - a[None, :]).abs() < 1e-4
    differ = (slope[:, None] - slope[None, :]).abs() > 0.1
    assert (same & differ).any() == (activation not in FROM_OUTPUT)
