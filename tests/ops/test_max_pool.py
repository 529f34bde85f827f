import pytest
import timm
import torch
from torch import nn

from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.layers import LeanMaxPool2d, PatchNormConv2d
from affnorm_zoo.ops.max_pool import max_pool

POOLS = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2)), nn.MaxPool2d(2, 1, 0, 2)]


def sample(dtype=torch.float64, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    # multiples of a half, so that windows hold equal values and the choice among them shows
    x = (2 * torch.randn(2, 3, 9, 8, generator=generator)).round() / 2
    return x.to(memory_format=layout).to(dtype).requires_grad_()


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_values_and_gradients_are_torchs_to_the_bit(pool, dtype, layout):
    x = sample(dtype, layout)
    expected, actual = pool(x), LeanMaxPool2d(pool)(x)
    dz = torch.randn_like(expected)
    assert torch.equal(actual, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, dz)[0] for y in (actual, expected)))


def test_one_image_second_derivatives_and_transforms():
    window = (3, 3), (2, 2), (1, 1), (1, 1)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: max_pool(t, *window), x)
    assert torch.autograd.gradgradcheck(lambda t: max_pool(t, *window).square(), x)
    torch.testing.assert_close(torch.vmap(lambda t: max_pool(t, *window))(x), max_pool(x, *window))
    one = x.detach()[0].requires_grad_()
    (dx,) = torch.autograd.grad(max_pool(one, *window).square().sum(), one)
    (all_dx,) = torch.autograd.grad(max_pool(x, *window).square().sum(), x)
    torch.testing.assert_close(dx, all_dx[0])


def test_behind_a_fused_relu_nothing_more_is_saved():
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    conv = PatchNormConv2d(3, 8, 3, activation="relu")
    lean, plain = (nn.Sequential(conv, pool) for pool in (LeanMaxPool2d(POOLS[0]), POOLS[0]))
    assert saved_bytes(lean, x) == saved_bytes(conv, x)
    assert saved_bytes(plain, x) == saved_bytes(conv, x) + 8 * 2 * 8 * 5 * 5


def test_bound_resnets_pool_so_unless_every_activation_is_to_stay():
    for absorb in (True, False):
        model = timm.create_model("resnet18_patchnorm", absorb=absorb)
        assert isinstance(model.maxpool, LeanMaxPool2d) == absorb
        assert isinstance(model.maxpool, nn.MaxPool2d)
    assert type(timm.create_model("resnet18").maxpool) is nn.MaxPool2d


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(2, ceil_mode=True)], ids=str)
def test_other_poolings_are_refused(pool):
    with pytest.raises(ValueError, match="cannot be made lean"):
        LeanMaxPool2d(pool)


def test_scripted_and_exported_pools_are_the_same():
    x, pool = sample().detach(), LeanMaxPool2d(POOLS[0])
    for twin in (torch.jit.script(pool), torch.export.export(pool, (x,)).module()):
        assert torch.equal(twin(x), POOLS[0](x))
