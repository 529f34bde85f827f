"""Every op with its kernels, as on a GPU: the bias added and summed by the passes, and none of it by the library."""

import pytest
import torch
from definitions import max_error
from ops.cases import CASES, forward_backward, on_the_same_side
from twins import DEVICE

from affnorm_zoo.ops import passes

pytest.importorskip("affnorm_zoo.kernels.elementwise", reason="Triton is for Linux", exc_type=ImportError)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(passes, "use_kernels", lambda x: x.dtype != torch.float64)
    monkeypatch.setattr(passes, "bias_in_library", lambda x, kappa: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # nothing is chosen by timing


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format),
     pytest.param(torch.float32, torch.contiguous_format, marks=pytest.mark.slow),
     pytest.param(torch.bfloat16, torch.channels_last, marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ops_err_no_more_than_twice_the_reference(case, dtype, layout):
    inputs = [t.detach().to(DEVICE).requires_grad_() for t in case.sample(dtype, layout)]
    true, eager, lean = case.reference(*(t.double() for t in inputs)), case.reference(*inputs), case.lean(*inputs)
    # the kernels round y before they add κ b, so in other places than the reference
    dz = torch.randn_like(eager) * on_the_same_side(case, true, eager, lean)
    truth = forward_backward(case.reference, inputs, dz, dtype=torch.float64)
    eager = forward_backward(case.reference, inputs, dz)
    lean = forward_backward(case.lean, inputs, dz)
    moved = truth
    if case.name.startswith("ws"):  # sums over a standardised kernel cancel: an ulp of the inputs moves them
        signs = [torch.randn_like(t).sign() for t in inputs]
        nudged = [t.detach() * (1 + torch.finfo(dtype).eps * sign) for t, sign in zip(inputs, signs, strict=True)]
        moved = forward_backward(case.reference, [t.requires_grad_() for t in nudged], dz, dtype=torch.float64)
    for name in truth:
        ulp = torch.finfo(dtype).eps * truth[name].abs().max().item()
        limit = 2 * max_error(eager[name], truth[name]) + max_error(moved[name], truth[name]) + ulp + 1e-6
        assert lean[name].dtype == dtype
        assert max_error(lean[name], truth[name]) <= limit, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plain_passes_agree_where_they_add_the_bias(case, monkeypatch):
    monkeypatch.setattr(passes, "use_kernels", lambda x: False)
    inputs = case.sample()
    dz = torch.randn_like(case.reference(*inputs))
    expected, actual = forward_backward(case.reference, inputs, dz), forward_backward(case.lean, inputs, dz)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-11)
