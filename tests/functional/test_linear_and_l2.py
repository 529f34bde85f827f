import pytest
import torch
from definitions import max_error

from affnorm_zoo import affine_like_linear, l2_norm, norm_like_linear
from affnorm_zoo.functional import standardize_weight

MAPS = {"affine_like": affine_like_linear, "norm_like": norm_like_linear}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", ["unit", "rms", (2.0, 0.0)], ids=str)
def test_gradcheck(name, scale):
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (4, 5), (4,))]
    assert torch.autograd.gradcheck(lambda x, w, b: MAPS[name](x, w, b, scale=scale), inputs)


@pytest.mark.parametrize(
    ("scale", "c", "kappa"),
    [("unit", 1, 1), ("rms", 3, 3), ("rms4", 3, 12), ("rms0.5", 3, 1.5), ((0.7, 2.5), 0.7, 2.5)],
)
def test_a_scale_is_its_c_and_kappa(scale, c, kappa):
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 9), (4, 9), (4,)))
    length = (x.square().sum(1, keepdim=True) + kappa**2).sqrt()
    expected = c * (x @ weight.T + kappa * bias) / length
    torch.testing.assert_close(affine_like_linear(x, weight, bias, scale=scale), expected)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 5), (2, 3, 5)], ids=str)
def test_any_leading_shape(name, shape):
    x, weight = torch.randn(*shape), torch.randn(4, 5)
    z = MAPS[name](x, weight)
    assert z.shape == (*shape[:-1], 4)
    flat = MAPS[name](x.reshape(-1, 5), weight)
    torch.testing.assert_close(z.reshape(-1, 4), flat)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_huge_inputs_under_autocast(name, dtype):
    x, weight, bias = 1e3 * torch.randn(4, 512), torch.randn(8, 512) / 23, torch.randn(8)
    truth = MAPS[name](x.double(), weight.double(), bias.double(), scale="rms")
    with torch.autocast("cpu", dtype=dtype):
        z = MAPS[name](x, weight, bias, scale="rms")
    assert max_error(z, truth) <= 8 * torch.finfo(dtype).eps * truth.abs().max().item()


@pytest.mark.parametrize("name", MAPS)
def test_wrong_shapes_are_named(name):
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 5\)"):
        MAPS[name](torch.zeros(3, 4), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\)"):
        MAPS[name](torch.zeros(3, 5), torch.zeros(2, 5), torch.zeros(3))
    with pytest.raises(ValueError, match="weight must have shape"):
        MAPS[name](torch.zeros(3, 5), torch.zeros(5))


@pytest.mark.parametrize(("scale", "length"), [("unit", 1.0), ("rms", 7**0.5), ((2.5, 0.0), 2.5)])
def test_l2_norm_gives_the_length_c_in_any_axis(scale, length):
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    y = l2_norm(x, dim=1, scale=scale)
    torch.testing.assert_close(y.norm(dim=1), torch.full((3, 4), length, dtype=torch.float64))
    torch.testing.assert_close(y, l2_norm(9.0 * x, dim=1, scale=scale))


def test_l2_norm_of_zero_is_zero_with_zero_gradient():
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    y = l2_norm(x)
    (dx,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
    assert not y.any()
    assert not dx.any()


def test_standardized_kernels_have_mean_zero_and_variance_one_over_c_squared():
    weight, gain = 3 + 5 * torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    kernels = standardize_weight(weight, gain, c=2.0).flatten(1)
    torch.testing.assert_close(kernels.mean(1), torch.zeros(4, dtype=torch.float64))
    # eps = 1e-6 beside a variance of 25
    torch.testing.assert_close(kernels.std(1, correction=0), gain.abs() / 2, rtol=1e-7, atol=0)
    with pytest.raises(ValueError, match=r"gain must have shape \(4,\)"):
        standardize_weight(weight, gain[:2], c=1.0)
