"""Normalisers as a map and a scale."""

import copy

import pytest
import torch
from torch import nn

from affnorm_zoo import affine_like_linear, get_normalizer, l2_norm
from affnorm_zoo.functional import scale_map, vector_softsign
from affnorm_zoo.layers import Derf, DyT, Softsign, Softsign2d

LAYERS = (DyT, Derf, Softsign)


def trained(layer):
    """The layer with parameters as after training: none at its start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.25)
    return layer


@pytest.mark.parametrize("scale", ["unit", "rms", "rms4", (0.7, 2.5)], ids=str)
def test_affine_like_is_a_linear_layer_on_the_augmented_softsign(scale):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((4, 3, 7), (5, 7), (5,)))
    root = 7**0.5
    c, kappa = {"unit": (1.0, 1.0), "rms": (root, root), "rms4": (root, 4 * root)}.get(scale, scale)
    # vector_softsign divides by √(‖x‖² + κ²); the appended κ is divided by the same
    squeezed = vector_softsign(x, kappa=kappa)
    constant = (1 - squeezed.square().sum(-1, keepdim=True)).sqrt()  # κ/√(‖x‖² + κ²): the rest of a unit vector
    augmented = torch.cat([squeezed, constant], dim=-1)
    expected = c * nn.functional.linear(augmented, torch.cat([weight, bias[:, None]], dim=1))
    torch.testing.assert_close(affine_like_linear(x, weight, bias, scale=scale), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [-1, 1])
def test_the_softsign_keeps_the_direction_and_bounds_the_length(dim):
    x = torch.randn(6, 5, 4, dtype=torch.float64) * torch.logspace(-6, 6, 6, dtype=torch.float64).reshape(6, 1, 1)
    y = vector_softsign(x, kappa=2.0, dim=dim)
    length = x.norm(dim=dim, keepdim=True)
    torch.testing.assert_close(y.norm(dim=dim, keepdim=True), length / (length.square() + 4).sqrt())
    torch.testing.assert_close(y / y.norm(dim=dim, keepdim=True), x / length)
    torch.testing.assert_close(vector_softsign(x, kappa=1e-9, dim=dim), l2_norm(x, dim=dim), rtol=1e-5, atol=0)


def test_a_softsign_of_one_entry_is_elementwise():
    x = torch.randn(9, 1, dtype=torch.float64)
    torch.testing.assert_close(vector_softsign(x, kappa=1.0), x / (1 + x.square()).sqrt())
    with pytest.raises(ValueError, match="kappa must be positive, got 0"):
        vector_softsign(x, kappa=0)


@pytest.mark.parametrize("dim", [-1, 2, -3, 1])
def test_a_scale_is_none_scalar_or_per_channel(dim):
    y = torch.randn(2, 3, 4, 5)
    channels = y.shape[dim]
    weight, bias = torch.randn(channels), torch.randn(channels)
    moved = y.movedim(dim, -1)
    expected = (moved * weight + bias).movedim(-1, dim)
    torch.testing.assert_close(scale_map(y, weight, bias, dim), expected)
    torch.testing.assert_close(scale_map(y, torch.tensor(3.0), None, dim), 3 * y)
    assert scale_map(y, None, None, dim) is y


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_compute_their_formula_and_start_as_their_papers_say(kind):
    x = torch.randn(4, 6, dtype=torch.float64)
    start = {name: parameter.unique().item() for name, parameter in kind(6).named_parameters()}
    assert (
        start
        == {
            DyT: {"weight": 1, "bias": 0, "alpha": 0.5},
            Derf: {"weight": 1, "bias": 0, "alpha": 0.5, "shift": 0},
            Softsign: {"weight": 1, "bias": 0},
        }[kind]
    )
    layer = trained(kind(6, dtype=torch.float64))
    inner = {
        DyT: lambda: torch.tanh(layer.alpha * x),
        Derf: lambda: torch.special.erf(layer.alpha * x + layer.shift),
        Softsign: lambda: 6**0.5 * x / (x.square().sum(-1, keepdim=True) + 6).sqrt(),
    }[kind]()
    torch.testing.assert_close(layer(x), layer.weight * inner + layer.bias)
    assert kind(6, affine=False).weight is None


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_layers_differentiate_script_and_keep_the_dtype(kind):
    layer = trained(kind(3, dtype=torch.float64))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(layer))(x), layer(x))
    half = kind(3)
    assert half(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16


def test_images_are_normalised_over_their_channels():
    tokens, images = trained(Softsign(6)), Softsign2d(6)
    images.load_state_dict(tokens.state_dict())
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(images(x), tokens(x.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("name", ["dyt", "derf", "softsign"])
def test_they_are_separable_baselines(name):
    spec = get_normalizer(name)
    assert not spec.is_bound
    assert spec.norm(8, device="meta", dtype=torch.float16, eps=1e-6).weight.dtype == torch.float16
