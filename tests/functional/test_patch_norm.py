import pytest
import torch
from definitions import max_error, unfolded_patch_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from affnorm_zoo import patch_norm_conv2d

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 2, 3]))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(max(1, r - 2 * p) + draw(st.integers(0, 4)) for r, p in zip(reach, padding, strict=True))
    return {
        "n": draw(st.integers(0, 2)),
        "c_in": groups * draw(st.integers(1, 3)),
        "c_out": groups * draw(st.integers(1, 2)),
        "size": size,
        "kernel": kernel,
        "args": (stride, padding, dilation, groups),
        "bias": draw(st.booleans()),
        "norm_like": draw(st.booleans()),
        "scale": draw(st.sampled_from([(1.0, 1.0), (2.5, 0.5), (3.0, 0.0)])),
        "seed": draw(st.integers(0, 2**31)),
    }


def build(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(case["seed"])
    x = torch.randn(case["n"], case["c_in"], *case["size"], generator=generator, dtype=dtype)
    weight = torch.randn(
        case["c_out"], case["c_in"] // case["args"][3], *case["kernel"], generator=generator, dtype=dtype
    )
    bias = torch.randn(case["c_out"], generator=generator, dtype=dtype) if case["bias"] else None
    return x, weight, bias


@given(convolutions())
@settings(max_examples=150, deadline=None)
def test_any_convolution_equals_the_definition(case):
    x, weight, bias = build(case)
    c, kappa = case["scale"]
    variant = "norm_like" if case["norm_like"] else "affine_like"
    actual = patch_norm_conv2d(x, weight, bias, *case["args"], variant=variant, scale=case["scale"])
    assert actual.shape == F.conv2d(x, weight, bias, *case["args"]).shape
    if case["n"]:  # unfold refuses an empty batch
        truth = unfolded_patch_norm(x, weight, bias, *case["args"], norm_like=case["norm_like"], c=c, kappa=kappa)
        torch.testing.assert_close(actual, truth, rtol=1e-10, atol=1e-10)


@given(convolutions())
@settings(max_examples=20, deadline=None)
def test_gradcheck(case):
    x, weight, bias = build({**case, "n": 1})
    inputs = [p.requires_grad_() for p in (x, weight, bias) if p is not None]
    variant = "norm_like" if case["norm_like"] else "affine_like"

    def layer(x, weight, bias=None):
        return patch_norm_conv2d(x, weight, bias, *case["args"], variant=variant, scale=case["scale"])

    assert torch.autograd.gradcheck(layer, inputs)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_string_padding_is_the_explicit_one(kernel, dilation):
    x, weight = torch.randn(2, 3, 7, 9, dtype=torch.float64), torch.randn(4, 3, *kernel, dtype=torch.float64)
    total = [dilation * (k - 1) for k in kernel]
    padded = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    same = patch_norm_conv2d(x, weight, padding="same", dilation=dilation)
    torch.testing.assert_close(same, patch_norm_conv2d(padded, weight, dilation=dilation))
    assert same.shape == (2, 4, 7, 9)
    torch.testing.assert_close(patch_norm_conv2d(x, weight, padding="valid"), patch_norm_conv2d(x, weight))


def test_one_image_without_a_batch_axis():
    x, weight = torch.randn(3, 7, 9, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(patch_norm_conv2d(x, weight), patch_norm_conv2d(x[None], weight)[0])


@pytest.mark.parametrize("variant", ["affine_like", "norm_like"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_low_precision_errs_by_roundings_only(variant, dtype, layout):
    x = torch.randn(2, 8, 9, 7).to(dtype).to(memory_format=layout)
    weight, bias = torch.randn(6, 8, 3, 3).to(dtype), torch.randn(6).to(dtype)
    actual = patch_norm_conv2d(x, weight, bias, padding=1, variant=variant, scale="rms")
    truth = patch_norm_conv2d(x.double(), weight.double(), bias.double(), padding=1, variant=variant, scale="rms")
    assert actual.dtype == dtype
    # W∗x is rounded once, after an accumulation of 72 terms in float32, and the product with r once more
    accumulated = 72 * torch.finfo(torch.float32).eps
    limit = (4 * torch.finfo(dtype).eps + accumulated) * truth.abs().max().item()
    assert max_error(actual, truth) <= limit


@pytest.mark.parametrize("variant", ["affine_like", "norm_like"])
def test_huge_inputs_survive_float16_autocast(variant):
    x, weight = 1e4 * torch.randn(1, 512, 5, 5), torch.randn(4, 512, 3, 3) / 68
    truth = patch_norm_conv2d(x.double(), weight.double(), padding=1, variant=variant, scale="rms")
    with torch.autocast("cpu", dtype=torch.float16):
        actual = patch_norm_conv2d(x, weight, padding=1, variant=variant, scale="rms")
    assert actual.dtype == torch.float16
    # x and W are rounded to float16 on the way in, the sum and the product on the way out
    assert max_error(actual, truth) <= 4 * torch.finfo(torch.float16).eps * truth.abs().max().item() * 2


@pytest.mark.parametrize("variant", ["affine_like", "norm_like"])
def test_patches_of_zeros_give_the_bias_and_finite_gradients(variant):
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    x[..., 4, 4] = 1.0  # one corner of the image is not zero
    x.requires_grad_()
    weight, bias = torch.randn(3, 2, 3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    z = patch_norm_conv2d(x, weight, bias, padding=1, variant=variant)
    torch.testing.assert_close(z[0, :, 0, 0], bias)
    (dx,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), x)
    assert dx.isfinite().all()
    if variant == "norm_like":
        assert not dx[0, :, 0, 0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5, 6, 6)}, "x must have 4 channels"),
        ({"x": torch.zeros(2, 4)}, r"x must have shape \(N, C, H, W\)"),
        ({"weight": torch.zeros(6, 4)}, "weight must have shape"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \(6,\)"),
        ({"groups": 4}, "groups must divide"),
        ({"variant": "batch"}, "variant must be one of affine_like, norm_like"),
        ({"scale": "big"}, "scale must be 'unit', 'rms'"),
        ({"scale": (0.0, 1.0)}, "c must be positive"),
        ({"scale": (1.0, -1.0)}, "κ must be zero or positive"),
        ({"padding": "full"}, "padding must be"),
        ({"padding": "same", "stride": 2}, "needs stride 1"),
        ({"activation": "mish"}, "activation must be one of"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    good = {"x": torch.zeros(2, 4, 6, 6), "weight": torch.zeros(6, 4, 3, 3)}
    with pytest.raises(ValueError, match=message):
        patch_norm_conv2d(**{**good, **change})
