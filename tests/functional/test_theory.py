"""The paper's claim, measured: one real SGD step moves z by -η · factor · g, with the factor of the theory."""

import math

import pytest
import torch
from torch.nn import functional as F

from affnorm_zoo import affine_like_linear, l2_norm, norm_like_linear, patch_norm_conv2d

N_IN, N_OUT, RATE = 7, 5, 1e-3


def moved_by_one_step(layer, params, x, g):
    """Actual change of z after one SGD step on <g, z>, for a single sample."""
    params = [p.clone().requires_grad_() for p in params]
    optimizer = torch.optim.SGD(params, lr=RATE)
    before = layer(x, *params)
    (before * g).sum().backward()
    optimizer.step()
    with torch.no_grad():
        return layer(x, *params) - before


def sample(length, *shape):
    x = torch.randn(*shape, dtype=torch.float64)
    return x * (length / x.norm())


LINEAR_CASES = {
    "affine": (F.linear, lambda c, kappa, sq: sq + 1),
    "affine_like": (affine_like_linear, lambda c, kappa, sq: c**2),
    "norm_like": (norm_like_linear, lambda c, kappa, sq: c**2 + 1),
}


@pytest.mark.parametrize("name", LINEAR_CASES)
@pytest.mark.parametrize("scale", ["unit", "rms", "rms4", (0.7, 2.5)], ids=str)
@pytest.mark.parametrize("length", [1e-3, 1.0, 40.0])
def test_linear_step_has_the_factor_of_the_table(name, scale, length):
    layer, factor = LINEAR_CASES[name]
    root = math.sqrt(N_IN)
    c, kappa = {"unit": (1, 1), "rms": (root, root), "rms4": (root, 4 * root)}.get(scale, scale)
    x, g = sample(length, 1, N_IN), torch.randn(1, N_OUT, dtype=torch.float64)
    params = [torch.randn(N_OUT, N_IN, dtype=torch.float64), torch.randn(N_OUT, dtype=torch.float64)]
    options = {} if name == "affine" else {"scale": scale}
    moved = moved_by_one_step(lambda x, w, b: layer(x, w, b, **options), params, x, g)
    expected = -RATE * factor(c, kappa, length**2) * g
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", ["affine_like", "norm_like"])
@pytest.mark.parametrize("scale", ["unit", "rms", "rms4"])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_with_one_position_has_the_factor_of_the_table(variant, scale, groups):
    x, g = sample(12.0, 1, 6, 3, 2), torch.randn(1, 9, 1, 1, dtype=torch.float64)
    params = [torch.randn(9, 6 // groups, 3, 2, dtype=torch.float64), torch.randn(9, dtype=torch.float64)]
    moved = moved_by_one_step(
        lambda x, w, b: patch_norm_conv2d(x, w, b, groups=groups, variant=variant, scale=scale), params, x, g
    )
    c_squared = 1 if scale == "unit" else 6 // groups * 6
    factor = c_squared + (1 if variant == "norm_like" else 0)
    torch.testing.assert_close(moved, -RATE * factor * g, rtol=1e-9, atol=1e-12)


def test_plain_convolution_diverges_with_the_patch():
    g = torch.randn(1, 4, 1, 1, dtype=torch.float64)
    params = [torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    for length in (0.1, 1.0, 10.0):
        moved = moved_by_one_step(F.conv2d, params, sample(length, 1, 3, 3, 3), g)
        torch.testing.assert_close(moved, -RATE * (length**2 + 1) * g, rtol=1e-9, atol=1e-12)


def test_small_kappa_leaves_norm_like_without_bias():
    x, w, b = torch.randn(4, N_IN, dtype=torch.float64), *_weights()
    limit = norm_like_linear(x, w)
    for kappa in (1e-3, 1e-5):
        # the error is κ b/‖x‖, first order in κ
        error = (affine_like_linear(x, w, b, scale=(1.0, kappa)) - limit).abs().max()
        assert error <= 2 * kappa * b.abs().max() / x.norm(dim=1).min()
    torch.testing.assert_close(affine_like_linear(x, w, b, scale=(1.0, 0.0)), limit)


def test_large_kappa_leaves_the_affine_map():
    """Its bias is κ b: in the limit b must shrink as 1/κ for the bias to stay."""
    x, w, b = torch.randn(4, N_IN, dtype=torch.float64), *_weights()
    affine = F.linear(x, w, b)
    for kappa in (1e3, 1e5):
        error = (affine_like_linear(x, w, b / kappa, scale=(kappa, kappa)) - affine).abs().max()
        # the divisor √(‖x‖² + κ²)/κ exceeds 1 by less than ‖x‖²/2κ²
        assert error <= x.square().sum(1).max() / (2 * kappa**2) * affine.abs().max()


def test_norm_like_ignores_the_length_and_affine_like_does_not():
    x, w, b = torch.randn(4, N_IN, dtype=torch.float64), *_weights()
    torch.testing.assert_close(norm_like_linear(3.7 * x, w, b), norm_like_linear(x, w, b))
    assert (affine_like_linear(3.7 * x, w, b) - affine_like_linear(x, w, b)).abs().max() > 0.1
    images, kernel = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        patch_norm_conv2d(3.7 * images, kernel, variant="norm_like"),
        patch_norm_conv2d(images, kernel, variant="norm_like"),
    )


def test_patch_norm_is_inseparable():
    """Two images that agree at a pixel, but not around it: no per-pixel normaliser can tell the patches apart.

    If PatchNorm were a convolution of a map that normalises pixels, its output would be a sum over the patch of terms
    that each depend on one pixel; mixed second differences in two pixels of one patch would be zero.
    """
    kernel = torch.ones(1, 1, 1, 2, dtype=torch.float64)

    def output(left, right):
        return patch_norm_conv2d(torch.tensor([[[[left, right]]]], dtype=torch.float64), kernel).item()

    mixed = output(2.0, 3.0) - output(2.0, 1.0) - output(1.0, 3.0) + output(1.0, 1.0)
    assert abs(mixed) > 0.01


def test_affine_like_is_smooth_at_zero_and_needs_no_eps():
    w, b = _weights()
    for x in (torch.zeros(1, N_IN, dtype=torch.float64), torch.full((1, N_IN), 1e-200, dtype=torch.float64)):
        x.requires_grad_()
        torch.testing.assert_close(affine_like_linear(x, w, b), b[None])
        (gradient,) = torch.autograd.grad(affine_like_linear(x, w, b).sum(), x)
        torch.testing.assert_close(gradient, w.sum(0, keepdim=True))


def test_norm_like_at_zero_gives_the_bias_and_no_gradient():
    w, b = (p.requires_grad_() for p in _weights())
    x = torch.zeros(1, N_IN, dtype=torch.float64, requires_grad=True)
    z = norm_like_linear(x, w, b)
    dx, dw, db = torch.autograd.grad((z * torch.randn_like(z)).sum(), (x, w, b))
    assert torch.equal(z, b[None])
    assert not dx.any()
    assert not dw.any()
    assert db.all()


@pytest.mark.parametrize("length", [1e-11, 1e-12, 1e-13, 1e-16, 1e-20, 1e-22])
def test_norm_like_divides_by_no_less_than_its_floor_and_so_has_a_gradient_in_float32(length):
    w, b = (p.float() for p in _weights())
    x = sample(length, 1, N_IN).float().requires_grad_()
    z = norm_like_linear(x, w, b)
    share = min(length / 1e-12, 1.0)  # of the unit length
    torch.testing.assert_close(z, F.linear(share * x.detach() / length, w, b), rtol=1e-4, atol=1e-5)
    normalized = l2_norm(x)
    torch.testing.assert_close(normalized, share * x / length, rtol=1e-4, atol=0)
    for y in (z, normalized):
        (dx,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
        assert dx.isfinite().all()
        assert dx.norm() * max(length, 1e-12) <= 2 * w.norm() * y.shape[1]


def _weights():
    return torch.randn(N_OUT, N_IN, dtype=torch.float64), torch.randn(N_OUT, dtype=torch.float64)
