import pytest
import torch
from definitions import max_error
from ops.cases import CASES, forward_backward, on_the_same_side
from torch import nn
from torch.autograd import forward_ad

from affnorm_zoo import AffineLikeLinear, PatchNormConv2d
from affnorm_zoo.evaluation.memory import saved_bytes
from affnorm_zoo.functional.weight_standardization import effective_weight_map
from affnorm_zoo.ops.weight_standardization import kernel_gradients, standardized_kernel

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def by_name(case):
    return case.name


@pytest.fixture(params=CASES, ids=by_name)
def case(request):
    return request.param


def test_values_and_gradients_are_the_references(case):
    inputs = case.sample()
    dz = torch.randn_like(case.reference(*inputs))
    expected, actual = forward_backward(case.reference, inputs, dz), forward_backward(case.lean, inputs, dz)
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["random direction", "every entry"]
)
def test_first_and_second_derivatives_are_numerically_right(case, fast_mode):
    inputs = case.sample()
    assert torch.autograd.gradcheck(case.lean, inputs, atol=1e-6, fast_mode=fast_mode)
    if fast_mode and not any(word in case.name for word in ("relu", "leaky", "stem", "gelu")):
        assert torch.autograd.gradgradcheck(case.lean, inputs, atol=1e-6, fast_mode=True)


def test_second_derivatives_are_the_references(case):
    def double(function):
        inputs = case.sample()
        z = function(*inputs)
        dz = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(5))
        first = torch.autograd.grad(z, inputs, dz, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, second, strict=True)]

    for actual, expected in zip(double(case.lean), double(case.reference), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_lean_errs_no_more_than_twice_the_reference(case, dtype, layout):
    inputs = case.sample(dtype, layout)
    true, eager, lean = case.reference(*(t.double() for t in inputs)), case.reference(*inputs), case.lean(*inputs)
    dz = torch.randn_like(eager) * on_the_same_side(case, true, eager, lean)
    truth = forward_backward(case.reference, inputs, dz, dtype=torch.float64)
    eager = forward_backward(case.reference, inputs, dz)
    lean = forward_backward(case.lean, inputs, dz)
    for name in truth:
        ulp = torch.finfo(dtype).eps * truth[name].abs().max().item()
        assert lean[name].dtype == dtype
        assert max_error(lean[name], truth[name]) <= 2 * max_error(eager[name], truth[name]) + ulp + 1e-6, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_follows_the_reference(case, dtype):
    inputs = case.sample(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        lean, eager = case.lean(*inputs), case.reference(*inputs)
    assert lean.dtype == eager.dtype
    limit = 8 * torch.finfo(dtype).eps * eager.abs().max().item()  # x and W rounded, then the product, then r's product
    assert max_error(lean, eager) <= limit
    gradients = torch.autograd.grad(lean, inputs, torch.randn_like(lean))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


def test_only_what_needs_a_gradient_gets_one(case):
    inputs = case.sample()
    for wanted in range(len(inputs)):
        tensors = [t.detach().requires_grad_(index == wanted) for index, t in enumerate(inputs)]
        z = case.lean(*tensors)
        dz = torch.randn_like(z)
        (actual,) = torch.autograd.grad(z, tensors[wanted], dz)
        (expected,) = torch.autograd.grad(case.reference(*tensors), tensors[wanted], dz)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_transforms_of_torch_func_take_the_plain_path(case):
    inputs = [t.detach() for t in case.sample()]
    dz = torch.randn_like(case.reference(*inputs))

    def loss(function):
        return lambda *tensors: (function(*tensors) * dz).sum()

    actual = torch.func.grad(loss(case.lean))(*inputs)
    torch.testing.assert_close(actual, torch.func.grad(loss(case.reference))(*inputs))
    stacked = torch.stack([inputs[0], 2 * inputs[0]])
    mapped = torch.vmap(lambda x: case.lean(x, *inputs[1:]))(stacked)
    torch.testing.assert_close(mapped[1], case.reference(2 * inputs[0], *inputs[1:]))


def test_forward_mode_takes_the_plain_path(case):
    inputs = [t.detach() for t in case.sample()]
    tangents = [torch.randn_like(t) for t in inputs]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(inputs, tangents, strict=True)]
        z, actual = forward_ad.unpack_dual(case.lean(*duals))
    _, expected = torch.func.jvp(case.reference, tuple(inputs), tuple(tangents))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(z, case.reference(*inputs))


TINY = [case for case in CASES if "norm_like" in case.name]


@pytest.mark.parametrize("case", TINY, ids=by_name)
@pytest.mark.parametrize("size", [1e-10, 0.5e-12, 1e-13, 1e-16, 1e-20, 1e-22, 1e-30])
def test_tiny_inputs_have_the_references_finite_gradients(case, size):
    inputs = [t.float() for t in case.sample()]
    inputs[0] = inputs[0] * size
    dz = torch.randn_like(case.reference(*inputs))
    expected, actual = forward_backward(case.reference, inputs, dz), forward_backward(case.lean, inputs, dz)
    for name in expected:
        assert expected[name].isfinite().all()
        # roundings of float32 in sums of some 50 terms
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=atol)


BATCHED = [case for case in CASES if len(case.shapes[0]) > 1]


@pytest.mark.parametrize("case", BATCHED, ids=by_name)
def test_empty_batches(case):
    inputs = case.sample()
    shortcut = [t[:0].detach().requires_grad_() for t in inputs[-1:] if case.name.startswith("residual")]
    rest = inputs[1:-1] if shortcut else inputs[1:]
    tensors = [inputs[0][:0].detach().requires_grad_(), *rest, *shortcut]
    z = case.lean(*tensors)
    gradients = torch.autograd.grad(z, tensors, torch.ones_like(z))
    assert gradients[0].shape == tensors[0].shape
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize(
    "name",
    ["kept", "recomputed", "pointwise", "norm_like-kept", "silu", "depthwise-silu", "hard_swish", "pointwise-gelu",
     "affine_like", "norm_like", "mixed-gram"],
)  # fmt: skip
def test_the_output_may_be_changed_in_place(name):
    case = next(case for case in CASES if case.name == name)
    inputs = case.sample()
    dz = torch.randn_like(case.reference(*inputs))

    def behind(function):
        z = function(*inputs)
        z += 0.25
        return torch.autograd.grad(nn.functional.relu(z, inplace=True), inputs, dz)

    for actual, expected in zip(behind(case.lean), behind(case.reference), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shift", [30.0, 1e4])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_mean_far_above_the_deviation_costs_no_more_than_an_ulp_of_each_weight(shift, layout):
    case = next(case for case in CASES if case.name == "ws")
    inputs = case.sample(torch.float32, layout)
    with torch.no_grad():
        inputs[1] += shift * inputs[1].std()
    dz = torch.randn_like(case.reference(*inputs))
    aside = torch.where(torch.rand_like(inputs[1]) < 0.5, -torch.inf, torch.inf)
    nudged = [inputs[0], torch.nextafter(inputs[1], aside), *inputs[2:]]
    truth, other = (forward_backward(case.reference, t, dz, dtype=torch.float64) for t in (inputs, nudged))
    eager, lean = forward_backward(case.reference, inputs, dz), forward_backward(case.lean, inputs, dz)
    for name in truth:
        ulp = torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        limit = 2 * max_error(eager[name], truth[name]) + max_error(other[name], truth[name]) + ulp + 1e-6
        assert max_error(lean[name], truth[name]) <= limit, name


def test_a_layer_saves_its_input_and_one_number_a_position():
    x = torch.randn(2, 16, 12, 12, requires_grad=True)
    one_map = 2 * 12 * 12 * 4
    full = 16 * one_map
    pointwise = PatchNormConv2d(16, 16, 1)
    assert saved_bytes(pointwise, x) == full + one_map
    assert saved_bytes(PatchNormConv2d(16, 16, 3, padding=1, activation="relu"), x) == 2 * full + one_map
    assert saved_bytes(PatchNormConv2d(16, 16, 3, padding=1), x) == 2 * full + one_map
    assert saved_bytes(PatchNormConv2d(16, 16, 3, padding=1, recompute=True), x) == full + one_map
    for activation in ("relu6", "leaky_relu"):
        assert saved_bytes(PatchNormConv2d(16, 16, 1, activation=activation), x) == 2 * full + one_map
    for activation in ("silu", "hard_swish", "gelu"):
        for kernel in (1, 3):
            kept, again = (
                PatchNormConv2d(16, 16, kernel, padding=kernel // 2, activation=activation, recompute=recompute)
                for recompute in (False, True)
            )
            assert saved_bytes(kept, x) == 2 * full + one_map
            assert saved_bytes(again, x) == full + one_map
    standardized = PatchNormConv2d(16, 16, 1, gain=True, weight_standardization=True)
    assert saved_bytes(standardized, x) == full + one_map
    assert saved_bytes(PatchNormConv2d(16, 16, 3, padding=1, gain=True, recompute=True), x) == full + one_map
    tokens = torch.randn(2, 50, 16, requires_grad=True)
    assert saved_bytes(AffineLikeLinear(16, 64), tokens) == (16 + 1) * 100 * 4
    assert saved_bytes(AffineLikeLinear(16, 64, input_activation="gelu"), tokens) == (16 + 1) * 100 * 4


@pytest.mark.parametrize(
    "name",
    ["kept", "norm_like-relu", "pointwise", "depthwise-silu", "affine_like-gelu", "ws-recomputed", "residual-relu",
     "mixed-gram",
     *(pytest.param(name, marks=pytest.mark.slow) for name in (
         "relu", "norm_like-relu6", "silu", "norm_like-hard_swish", "pointwise-gelu", "ws", "gain",
         "residual-relu-recomputed", "mixed-norm_like-tokens"))],
)  # fmt: skip
def test_compiled_ops_are_one_graph_and_agree(name):
    case = next(case for case in CASES if case.name == name)
    inputs = case.sample(torch.float32)
    dz = torch.randn_like(case.reference(*inputs))
    torch._dynamo.reset()
    compiled = torch.compile(case.lean, fullgraph=True, backend="aot_eager")
    actual, expected = forward_backward(compiled, inputs, dz), forward_backward(case.lean, inputs, dz)
    for key in expected:
        torch.testing.assert_close(actual[key], expected[key])


def test_standardised_weights_round_in_proportion_to_their_mean():
    """With a variance as a difference of squares the error would grow with the square of the mean over σ."""
    ratio, c = 100.0, 2.0
    weight, gain, g = ratio + torch.randn(8, 5, 3, 3), 0.5 + torch.rand(8), torch.randn(8, 5, 3, 3)
    kernel = standardized_kernel(weight, gain, c, torch.float32)
    actual = (kernel.value, *kernel_gradients(g, kernel, weight, gain, c))
    exact = [t.double().requires_grad_() for t in (weight, gain)]
    value = effective_weight_map(*exact, c, standardized=True)
    expected = (value, *torch.autograd.grad(value, exact, g.double()))
    eps = torch.finfo(torch.float32).eps
    for got, wanted in zip(actual, expected, strict=True):  # sums of 45 entries of that size
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=45 * eps * ratio * wanted.abs().max().item())
