"""Every kernel against the pass whose twin it is, in float64, on odd shapes, into poisoned memory."""

from itertools import product

import pytest
import torch
from twins import DEVICE, assert_twin, image

from affnorm_zoo.functional.activation import ACTIVATIONS, FROM_INPUT
from affnorm_zoo.ops import elementwise

kernels = pytest.importorskip("affnorm_zoo.kernels.elementwise", reason="Triton is for Linux", exc_type=ImportError)

SHAPES = [(2, 12, 5, 7), (1, 6, 1, 1), (3, 78, 3, 2)]
LAYOUTS = ["NCHW", "NHWC", "strided"]
QUICK = [(SHAPES[0], "NCHW"), (SHAPES[0], "NHWC"), (SHAPES[1], "NCHW"), (SHAPES[2], "strided")]
GROUPS = [1, 6, pytest.param(2, marks=pytest.mark.slow)]
DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]


@pytest.fixture(
    params=[pytest.param(p, marks=[] if p in QUICK else pytest.mark.slow) for p in product(SHAPES, LAYOUTS)], ids=str
)
def shape_and_layout(request):
    return request.param


@pytest.fixture
def shape(shape_and_layout):
    return shape_and_layout[0]


@pytest.fixture
def layout(shape_and_layout):
    return shape_and_layout[1]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def same(t):
    return t


@pytest.mark.parametrize("groups", GROUPS)
def test_square_sum(shape, dtype, layout, groups):
    x = image(shape, dtype, layout, 0)
    truth = elementwise.square_sum(x.double(), groups)
    assert_twin([kernels.square_sum(x, groups)], [elementwise.square_sum(x, groups)], [truth])


@pytest.mark.parametrize(
    ("activation", "keep"), [(name, name in ("none", *FROM_INPUT)) for name in ACTIVATIONS] + [("silu", False)]
)
@pytest.mark.parametrize(("groups", "bias"), [(1, "inner"), (1, "outer"), (2, None), ("channels", "inner")])
def test_scale_output(shape, dtype, layout, groups, bias, activation, keep):
    groups = shape[1] if groups == "channels" else groups
    y, factor = image(shape, dtype, layout, 0), image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 1)
    vector = None if bias is None else torch.randn(shape[1], device=DEVICE).to(dtype)
    kappa = 2.5 if bias == "inner" else None

    def apply(module, cast):
        mine = cast(y).clone()
        z = module.scale_output(mine, cast(factor), None if vector is None else cast(vector), kappa, activation, keep)
        assert torch.equal(mine, cast(y) if keep else z)
        return [z]

    assert_twin(apply(kernels, same), apply(elementwise, same), apply(elementwise, torch.Tensor.double))


MODES = {
    "nothing": {},
    "relu": {"activation": "relu", "output": 2},
    "leaky-sum": {"activation": "leaky_relu", "output": 2, "kappa": 2.5, "sum_bias": True},
    "relu-outer-sum": {"activation": "relu", "output": 2, "bias": 3, "sum_bias": True},
    "relu6-outer": {"activation": "relu6", "output": 2, "bias": 3},
    "outer-sum": {"sum_bias": True},
    "inner": {"inner": 2},
    "inner-bias-sum": {"inner": 2, "bias": 3, "kappa": 2.5, "sum_bias": True},
    "silu-inner": {"activation": "silu", "inner": 2, "bias": 3, "kappa": 2.5, "sum_bias": True},
    "hard_swish-outer": {"activation": "hard_swish", "inner": 2, "bias": 3, "sum_bias": True},
    "gelu": {"activation": "gelu", "inner": 2, "kappa": 2.5},
    "bias": {"bias": 3, "kappa": 2.5},
    "bias-sum": {"bias": 3, "kappa": 2.5, "sum_bias": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 6])
def test_scale_cotangent(shape, dtype, layout, groups, mode):
    dz, factor = image(shape, dtype, layout, 0), image((shape[0], groups, *shape[2:]), torch.float32, "NCHW", 1)
    given = cotangent_arguments(mode, shape, dtype, layout)
    wide = {key: value.double() if torch.is_tensor(value) else value for key, value in given.items()}
    truth = elementwise.scale_cotangent(dz.double(), factor.double(), **wide)
    ours, theirs = kernels.scale_cotangent(dz, factor, **given), elementwise.scale_cotangent(dz, factor, **given)
    # sums over pixels are taken in another order, and before h is rounded
    terms = (dz.double() * factor.double().abs().amax()).abs().sum((0, 2, 3)).max().item()
    slack = 2.5 * torch.finfo(torch.float32).eps * terms
    assert_twin(ours, theirs, truth, slack)


def cotangent_arguments(mode, shape, dtype, layout):
    given = dict(MODES[mode])
    for key in ("output", "inner"):
        if key in given:
            other = image(shape, dtype, layout, 2)
            rectified = {"relu": torch.relu, "relu6": lambda t: (4 * t).clamp(0, 6)}
            given[key] = rectified.get(given.get("activation"), same)(other)
    if "bias" in given:
        given["bias"] = torch.randn(shape[1], device=DEVICE).to(dtype)
    return given


@pytest.mark.parametrize("orders", [("NCHW", "NHWC"), ("NHWC", "NCHW"), ("strided", "NHWC")])
def test_tensors_of_one_launch_may_differ_in_their_order(orders):
    shape, groups = (2, 12, 5, 7), 3
    dz, z = (image(shape, torch.float32, order, seed) for seed, order in enumerate(orders))
    factor = image((2, groups, 5, 7), torch.float32, orders[0], 2)
    given = {"activation": "leaky_relu", "output": z, "sum_bias": True}
    truth = elementwise.scale_cotangent(dz.double(), factor.double(), **given | {"output": z.double()})
    ours = kernels.scale_cotangent(dz, factor, **given)
    assert_twin(ours, elementwise.scale_cotangent(dz, factor, **given), truth)
    assert ours[0].is_contiguous(memory_format=torch.channels_last) == (orders[1] == "NHWC")
    results = [cast(dz).clone() for cast in (same, same, torch.Tensor.double)]
    for module, dx, cast in zip(
        (kernels, elementwise, elementwise), results, (same, same, torch.Tensor.double), strict=True
    ):
        module.correct(dx, cast(z), cast(factor))
    assert_twin(*([dx] for dx in results))


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
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

    # the channel sum is taken in another order; its roundings add up like a random walk and are multiplied by x·factor
    terms = (x.double() * dx.double()).abs().sum(1).max().item()
    scale = x.double().abs().max().item() * factor.abs().max().item()
    slack = torch.finfo(torch.float32).eps * shape[1] ** 0.5 * terms * scale
    assert_twin(apply(kernels, same), apply(elementwise, same), apply(elementwise, torch.Tensor.double), slack)


def test_launches_are_refused_where_they_would_be_wrong():
    from affnorm_zoo.kernels._launch import can_launch, next_power_of_2

    assert not can_launch(torch.zeros(1))
    assert [next_power_of_2(n) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
