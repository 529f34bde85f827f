"""How the passes run in half precision on a CPU: piece by piece, and rounded once."""

import pytest
import torch
from definitions import max_error
from torch.utils._python_dispatch import TorchDispatchMode

from affnorm_zoo.functional.activation import ACTIVATIONS, FROM_INPUT
from affnorm_zoo.ops import elementwise, passes

SHAPES = [(3, 12, 5, 7), (2, 6, 1, 1), (1, 78, 9, 2), (0, 6, 3, 3)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=[torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=["NCHW", "NHWC", "strided"])
def layout(request):
    return request.param


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 100], ids=["rows", "some"])
def piece(request, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", request.param)
    return request.param


def image(shape, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w = shape
    if layout == "strided":
        return torch.randn(n, c, 2 * h, 3 * w, generator=generator).to(dtype)[:, :, ::2, ::3]
    order = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    return torch.randn(shape, generator=generator).to(dtype, memory_format=order)


def a_map(shape, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape[0], groups, *shape[2:], generator=generator) + 0.5


def assert_rounded_once(actual, true, terms=0.0):
    """Half an ulp of each entry, or of the smallest normal one; ``terms`` bounds what float32 adds up."""
    info = torch.finfo(actual.dtype)
    allowed = info.eps / 2 * true.abs().clamp_min(info.tiny) + 8 * torch.finfo(torch.float32).eps * (terms + true.abs())
    assert actual.shape == true.shape
    assert ((actual.double() - true).abs() <= allowed).all()


def test_pieces_are_every_pixel_once(shape, layout, piece):
    counted, x = torch.zeros(shape[0], 1, *shape[2:]), image(shape, torch.float32, layout, 0)
    copied = torch.zeros_like(x)
    for copied_, nothing, x_, counted_ in passes.pieces(copied, None, x, counted):
        assert nothing is None
        assert x_.numel() <= max(piece, shape[1] * shape[3])
        copied_.copy_(x_)
        counted_ += 1
    assert torch.equal(copied, x)
    assert (counted == 1).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_square_sum(shape, dtype, layout, groups, piece):
    x = image(shape, dtype, layout, 0)
    true = elementwise.square_sum(x.double(), groups)
    actual = passes.square_sum(x, groups)
    assert actual.dtype == torch.float32
    assert actual.shape == true.shape
    assert (
        max_error(actual, true) <= 2 * torch.finfo(torch.float32).eps * shape[1] * true.abs().amax().item()
        if (true.numel())
        else True
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("groups", "bias"), [(1, None), (1, "inner"), (1, "outer"), (2, None)])
def test_scale_output(shape, dtype, layout, piece, activation, groups, bias):
    keep = activation in ("none", *FROM_INPUT)
    y, factor = image(shape, dtype, layout, 0), a_map(shape, groups, 1)
    vector = None if bias is None else torch.linspace(-1, 2, shape[1]).to(dtype)
    kappa = 2.5 if bias == "inner" else None
    true = elementwise.scale_output(
        y.double(), factor.double(), None if vector is None else vector.double(), kappa, activation
    )
    mine = y.clone()
    z = passes.scale_output(mine, factor, vector, kappa, activation, keep)
    assert torch.equal(mine, y if keep else z)
    # near its zero a function of FROM_INPUT has the absolute error of its float32 input, which is at most 16
    assert_rounded_once(z, true, terms=16.0)


def test_scale_output_with_a_shortcut(shape, dtype, layout, piece):
    y, shortcut, factor = image(shape, dtype, layout, 0), image(shape, dtype, layout, 1), a_map(shape, 1, 2)
    z = y.double() * factor.double()
    actual = passes.scale_output(y.clone(), factor, None, None, "none", shortcut=shortcut)
    # as in the definition, z is rounded before the sum and the sum after it
    limit = torch.finfo(dtype).eps / 2 * (2 * z.abs() + shortcut.double().abs()) + 1e-6
    assert ((actual.double() - torch.relu(z + shortcut.double())).abs() <= 1.01 * limit).all()


MODES = {
    "nothing": {},
    "relu": {"activation": "relu", "output": True},
    "relu-outer-sum": {"activation": "relu", "output": True, "bias": True, "sum_bias": True},
    "leaky": {"activation": "leaky_relu", "output": True},
    "shortcut": {"output": True, "shortcut": True},
    "inner-bias-sum": {"inner": True, "bias": True, "kappa": 2.5, "sum_bias": True},
    "silu": {"activation": "silu", "inner": True},
    "bias": {"bias": True, "kappa": 2.5},
    "sum": {"sum_bias": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 2])
def test_scale_cotangent(shape, dtype, layout, piece, mode, groups):
    dz, factor = image(shape, dtype, layout, 0), a_map(shape, groups, 1)
    given = dict(MODES[mode])
    for seed, key in enumerate(("output", "shortcut", "inner"), start=2):
        if key in given:
            given[key] = image(shape, dtype, layout, seed)
    if "bias" in given:
        given["bias"] = torch.linspace(-1, 2, shape[1]).to(dtype)
    wide = {key: value.double() if torch.is_tensor(value) else value for key, value in given.items()}
    (h, s, dbias), (true_h, true_s, true_dbias) = (
        passes.scale_cotangent(dz, factor, **given),
        elementwise.scale_cotangent(dz.double(), factor.double(), **wide),
    )
    assert_rounded_once(h, true_h, terms=1.0)
    assert (s is None) == (true_s is None)
    assert (dbias is None) == (true_dbias is None)
    # sums of at most 300 terms, none above 200, in float32
    limit = 300 * 200 * torch.finfo(torch.float32).eps
    for actual, true in ((s, true_s), (dbias, true_dbias)):
        if true is not None:
            assert actual.dtype == torch.float32
            assert max_error(actual, true) <= limit


@pytest.mark.parametrize("groups", [1, 2])
def test_corrections(shape, dtype, layout, piece, groups):
    dx, x = image(shape, dtype, layout, 0), image(shape, dtype, layout, 1)
    factor, extra = a_map(shape, groups, 2) * 0.1, a_map(shape, groups, 3)
    wide, mine = dx.double().clone(), dx.clone()
    elementwise.correct(wide, x.double(), factor.double())
    passes.correct(mine, x, factor)
    assert_rounded_once(mine, wide, terms=10.0)
    wide, mine = dx.double().clone(), dx.clone()
    elementwise.correct_pointwise(wide, x.double(), factor.double(), extra.double())
    passes.correct_pointwise(mine, x, factor, extra)
    assert_rounded_once(mine, wide, terms=1000.0)


class LargestWide(TorchDispatchMode):
    """Elements of the largest float32 tensor of some channels that any operation returns."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor) and t.dtype == torch.float32 and t.dim() == 4 and t.shape[1] > 1:
                self.largest = max(self.largest, t.numel())
        return result


def test_no_pass_widens_more_than_a_piece(dtype, layout, monkeypatch):
    monkeypatch.setattr(passes, "PIECE", 500)
    shape = (4, 12, 8, 9)
    x, y, factor = image(shape, dtype, layout, 0), image(shape, dtype, layout, 1), a_map(shape, 1, 2)
    with LargestWide() as wide:
        passes.square_sum(x, 1)
        for activation in ACTIVATIONS:
            passes.scale_output(y.clone(), factor, None, None, activation, keep=activation in FROM_INPUT)
        passes.scale_cotangent(x, factor, activation="relu", output=y)
        passes.correct(y, x, factor)
        passes.correct_pointwise(y, x, factor, None)
    assert 0 < wide.largest <= 500
