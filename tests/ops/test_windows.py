"""Sums over windows beside their definition, by pooling and by additions."""

import pytest
import torch
from torch.nn import functional as F

from affnorm_zoo.ops import windows

GEOMETRIES = [  # kernel size, stride, padding, dilation
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((7, 7), (2, 2), (3, 3), (1, 1)),
    ((5, 2), (2, 3), (2, 0), (1, 1)),
    ((2, 2), (3, 1), (0, 1), (1, 1)),
    ((3, 2), (2, 1), (3, 1), (2, 3)),
    ((1, 1), (1, 1), (2, 1), (1, 1)),
    ((1, 1), (2, 3), (0, 0), (1, 1)),
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 1), (1, 2), (4, 5), (1, 1)),
]


@pytest.fixture(params=[0, 1 << 15], ids=["additions", "pooling"])
def few(request, monkeypatch):
    monkeypatch.setattr(windows, "FEW", request.param)


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=str)
def x(request):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64).contiguous(memory_format=request.param)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.usefixtures("few")
def test_sums_are_a_convolution_with_ones_and_its_transpose(x, geometry):
    kernel_size, stride, padding, dilation = geometry
    ones = torch.ones(3, 1, *kernel_size, dtype=torch.float64)
    before = x.clone()
    expected = F.conv2d(x, ones, None, stride, padding, dilation, groups=3)
    torch.testing.assert_close(windows.window_sum(x, *geometry), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    v = torch.randn(expected.shape, dtype=torch.float64)
    transposed = torch.nn.grad.conv2d_input(x.shape, ones, v, stride, padding, dilation, groups=3)
    before = v.clone()
    actual = windows.window_sum_transpose(v, x.shape[2:], *geometry)
    torch.testing.assert_close(actual, transposed, rtol=1e-12, atol=1e-12)
    assert torch.equal(v, before)


def test_large_maps_in_nchw_are_added_up(monkeypatch):
    geometry = GEOMETRIES[0]
    pooled = []
    monkeypatch.setattr(F, "avg_pool2d", lambda *args, **kwargs: pooled.append(args[0].shape))
    small, large = torch.ones(1, 1, 8, 8), torch.ones(4, 1, 56, 56)
    windows.window_sum(small, *geometry)
    windows.window_sum(large, *geometry)
    windows.window_sum(torch.ones(1, 96, 28, 28).contiguous(memory_format=torch.channels_last), *geometry)
    assert pooled == [(1, 1, 8, 8), (1, 96, 28, 28)]
