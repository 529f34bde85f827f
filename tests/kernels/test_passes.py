"""Every kernel against the pass whose twin it is, in float64, on odd shapes, into poisoned memory."""

import pytest
import torch
from twins import DEVICE, assert_twin, image

from affnorm_zoo.ops import passes

kernels = pytest.importorskip("affnorm_zoo.kernels.passes", reason="Triton is for Linux", exc_type=ImportError)

SHAPES = [(2, 12, 5, 7), (1, 6, 1, 1), (3, 78, 3, 2)]
GROUPS = [1, 2, 6]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=["NCHW", "NHWC", "strided"])
def layout(request):
    return request.param


@pytest.mark.parametrize("groups", GROUPS)
def test_square_sum(shape, dtype, layout, groups):
    x = image(shape, dtype, layout, 0)
    truth = passes.square_sum(x.double(), groups)
    assert_twin([kernels.square_sum(x, groups)], [passes.square_sum(x, groups)], [truth])


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False), (2, True)])
def test_scale_output(shape, dtype, layout, groups, bias, activation):
    y, factor = image(shape, dtype, layout, 0), image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 1)
    vector = torch.randn(shape[1], device=DEVICE).to(dtype) if bias else None
    truth = passes.scale_output(y.double(), factor.double(), None if vector is None else vector.double(), activation)
    theirs = passes.scale_output(y.clone(), factor, vector, activation)
    assert_twin([kernels.scale_output(y, factor, vector, activation)], [theirs], [truth])


MODES = {
    "nothing": {},
    "relu": {"activation": "relu", "output": 2},
    "leaky": {"activation": "leaky_relu", "output": 2},
    "relu-bias": {"activation": "relu", "output": 2, "outer_bias": 3},
    "bias": {"outer_bias": 3},
    "inner": {"inner": 2},
    "probe": {"probe": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2])
def test_scale_cotangent(shape, dtype, layout, groups, mode):
    dz, factor = image(shape, dtype, layout, 0), image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 1)
    given = dict(MODES[mode])
    for key in ("output", "inner"):
        if key in given:
            other = image(shape, dtype, layout, 2)
            given[key] = torch.relu(other) if given.get("activation") == "relu" else other
    for key in ("outer_bias", "probe"):
        if key in given:
            given[key] = torch.randn(shape[1], device=DEVICE).to(dtype)
    wide = {key: value.double() if torch.is_tensor(value) else value for key, value in given.items()}
    truth = passes.scale_cotangent(dz.double(), factor.double(), **wide)
    assert_twin(kernels.scale_cotangent(dz, factor, **given), passes.scale_cotangent(dz, factor, **given), truth)


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_corrections(shape, dtype, layout, groups, extra):
    dx, x = image(shape, dtype, layout, 0), image(shape, dtype, layout, 1)
    factor = image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 2)
    more = image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 3) if extra else None

    def apply(module, cast):
        result = cast(dx).clone()
        module.correct_pointwise(result, cast(x), cast(factor), None if more is None else cast(more))
        plain = cast(dx).clone()
        module.correct(plain, cast(x), cast(factor))
        return result, plain

    def same(t):
        return t

    # the channel sum is taken in another order; its roundings add up like a random walk and are multiplied by x·factor
    terms = (x.double() * dx.double()).abs().sum(1).max().item()
    scale = x.double().abs().max().item() * factor.abs().max().item()
    slack = torch.finfo(torch.float32).eps * shape[1] ** 0.5 * terms * scale
    assert_twin(apply(kernels, same), apply(passes, same), apply(passes, lambda t: t.double()), slack)


def test_launches_are_refused_where_they_would_be_wrong():
    from affnorm_zoo.kernels._launch import can_launch, next_power_of_2, tile_shape

    assert not can_launch(torch.zeros(1))
    assert [next_power_of_2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    for shape in SHAPES:
        for layout in ("NCHW", "NHWC"):
            rows, columns = tile_shape(image(shape, torch.float32, layout, 0), shape[1])
            assert 1 <= rows * columns <= 4096


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(
    "name", ["resnet18_patchnorm", "resnext50_32x4d_patchnorm_l2", "vit_tiny_patch16_224_affinelike"]
)
def test_networks_on_the_gpu_equal_those_on_the_cpu(name):
    import timm

    model = timm.create_model(name, num_classes=7).double().train()
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    model(x).square().sum().backward()
    truth = {key: p.grad for key, p in model.named_parameters()}
    twin = timm.create_model(name, num_classes=7).cuda()
    twin.load_state_dict(model.state_dict())
    twin(x.float().cuda()).square().sum().backward()
    for key, p in twin.named_parameters():
        torch.testing.assert_close(p.grad.cpu().double(), truth[key], rtol=1e-2, atol=1e-3 * truth[key].abs().max())
