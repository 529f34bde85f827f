"""The checks that a GPU is given: they see a wrong kernel, and timing does not change what is checked."""

import math

import pytest
import torch
from twins import DEVICE

from affnorm_zoo.benchmarks.gpu_evidence.sizes import GPU
from affnorm_zoo.benchmarks.kernel_check import KernelCase, check_case, passes_on, time_case
from affnorm_zoo.ops import elementwise

kernels = pytest.importorskip("affnorm_zoo.kernels.elementwise", reason="Triton is for Linux", exc_type=ImportError)

DEVICE = torch.device(DEVICE)
CASE = KernelCase((2, 12, 5, 7))
KERNELS = ["square_sum", "scale_output", "scale_cotangent", "correct_pointwise", "correct"]


@pytest.mark.parametrize("case", [CASE, KernelCase((2, 12, 5, 7), "NCHW", "float32", groups=3)], ids=str)
def test_every_kernel_is_checked_and_keeps_its_limit(case):
    rows = check_case(case, DEVICE)
    assert [row["kernel"] for row in rows] == KERNELS
    assert all(row["ok"] and 0 <= row["error"] <= row["limit"] for row in rows)


def test_a_wrong_kernel_and_unwritten_memory_fail_their_rows_alone(monkeypatch):
    right = kernels.square_sum
    monkeypatch.setattr(kernels, "square_sum", lambda x, groups: right(x, groups) * 1.01)
    monkeypatch.setattr(kernels, "correct", lambda dx, x, factor: dx.copy_(torch.empty_like(dx)))
    rows = {row["kernel"]: row for row in check_case(CASE, DEVICE)}
    assert [name for name, row in rows.items() if not row["ok"]] == ["square_sum", "correct"]
    assert math.isinf(rows["correct"]["error"])


def test_operands_stay_as_they_are_however_often_a_kernel_is_timed():
    for one in passes_on(KernelCase((1, 6, 2, 2), dtype="float16"), DEVICE):
        first = one.run(elementwise, lambda t: t)
        for _ in range(2000):
            result = one.repeat(elementwise)
        last = one.run(elementwise, lambda t: t)
        for a, b in zip(first, last, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        for tensor in result if isinstance(result, tuple) else [result]:
            assert tensor is None or tensor.isfinite().all(), one.name


def test_every_kernel_is_timed_beside_a_copy():
    rows = time_case(KernelCase((1, 8, 4, 4)), DEVICE)
    assert [row["kernel"] for row in rows] == KERNELS
    for row in rows:
        assert row["of_copy"] == pytest.approx(row["gb_per_second"] / row["copy_gb_per_second"])


def test_the_gpu_is_checked_on_real_widths_in_every_dtype_and_grouped_nhwc_first():
    layouts = [case.layout for case in GPU.checked]
    assert layouts == sorted(layouts, key=["NHWC", "NCHW"].index)
    for layout in ("NHWC", "NCHW"):
        cases = [case for case in GPU.checked if case.layout == layout]
        assert {case.shape[3] for case in cases} >= {112, 56, 28, 14, 7}
        assert {case.dtype for case in cases} == {"bfloat16", "float16", "float32"}
        assert {case.shape[1] // case.groups for case in cases if case.groups > 1} >= {1, 4}
