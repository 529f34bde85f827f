"""Check every Triton kernel on the GPU against float64 in poisoned memory, and time it against a plain copy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from affnorm_zoo.ops import elementwise

LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
Result = tuple[Tensor | None, ...]
_KAPPA = 2.0


@dataclass(frozen=True)
class KernelCase:
    """The images that the kernels run on: (N, C, H, W), their layout, dtype and channel groups."""

    shape: tuple[int, int, int, int]
    layout: str = "NHWC"
    dtype: str = "bfloat16"
    groups: int = 1

    def __str__(self) -> str:
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{'×'.join(map(str, self.shape))} {self.layout} {self.dtype}{groups}"


@dataclass(frozen=True)
class Pass:
    """One pass on fixed random images. ``moved`` is the number of bytes that it must read and write.

    ``run(module, cast)`` calls the kernel or its plain twin with cast operands, on a copy of the tensor it overwrites.
    ``repeat(module)`` overwrites the same scratch tensor each time. Its operands leave the values unchanged: with the
    checked operands they would overflow after some thousand calls.
    """

    name: str
    moved: int
    run: Callable[[Any, Callable[[Tensor], Tensor]], Result]
    repeat: Callable[[Any], Any]


def check_case(case: KernelCase, device: torch.device) -> list[dict[str, Any]]:
    """Compare each kernel with its plain twin and with float64, on fresh random images in poisoned memory.

    Returns:
        One row per kernel: the largest error, its limit (twice the plain twin's error plus an ulp of the largest
        value), and ``ok``, which is false if the error exceeds the limit or memory stays unwritten.
    """
    from affnorm_zoo.kernels import elementwise as kernels  # needs Triton

    rows = []
    for one in passes_on(case, device):
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
        try:
            ours, theirs = one.run(kernels, lambda t: t), one.run(elementwise, lambda t: t)
        finally:
            torch.use_deterministic_algorithms(False)
        error, limit = compare(ours, theirs, one.run(elementwise, lambda t: t.double()))
        rows.append({"kernel": one.name, "error": error, "limit": limit, "ok": error <= limit})
    return rows


def time_case(case: KernelCase, device: torch.device) -> list[dict[str, Any]]:
    """Time each kernel and a copy that moves as many bytes: one row per kernel, with both bandwidths."""
    from affnorm_zoo.kernels import elementwise as kernels  # needs Triton

    rows = []
    for one in passes_on(case, device):
        source = torch.randint(256, (one.moved // 2,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = median_seconds(partial(one.repeat, kernels), device)
        copy_seconds = median_seconds(partial(target.copy_, source), device)
        rows.append(
            {
                "kernel": one.name,
                "gb_per_second": one.moved / seconds / 1e9,
                "copy_gb_per_second": one.moved / copy_seconds / 1e9,
                "of_copy": copy_seconds / seconds,
            }
        )
    return rows


def passes_on(case: KernelCase, device: torch.device) -> Iterator[Pass]:
    """Every pass, on random images of the case."""
    n, channels, height, width = case.shape
    dtype = getattr(torch, case.dtype)
    a, b = (torch.randn(case.shape, device=device).to(dtype, memory_format=LAYOUTS[case.layout]) for _ in range(2))
    positive, scratch = b.relu(), a.clone()
    factor = torch.rand(n, case.groups, height, width, device=device) + 0.5
    per_channel = factor * case.groups / channels
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    vector = torch.randn(channels, device=device).to(dtype)
    size, maps = a.numel() * a.element_size(), factor.numel() * 4

    def overwritten(name: str, first: Tensor, *operands: Any) -> Callable:
        def run(module: Any, cast: Callable[[Tensor], Tensor]) -> Result:
            target = cast(first).clone()
            getattr(module, name)(target, *(cast(t) if isinstance(t, Tensor) else t for t in operands))
            return (target,)

        return run

    def cotangent(module: Any, cast: Callable[[Tensor], Tensor] = lambda t: t) -> Result:
        given = {"activation": "relu", "output": cast(positive), "kappa": _KAPPA, "sum_bias": True}
        return module.scale_cotangent(cast(a), cast(factor), **given)

    yield Pass(
        "square_sum", size + maps,
        lambda module, cast: (module.square_sum(cast(a), case.groups),),
        lambda module: module.square_sum(a, case.groups),
    )  # fmt: skip
    yield Pass(
        "scale_output", 2 * size + maps,
        overwritten("scale_output", a, factor, vector, _KAPPA, "relu"),
        lambda module: module.scale_output(scratch, one, torch.zeros_like(vector), _KAPPA, "relu"),
    )  # fmt: skip
    yield Pass("scale_cotangent", 3 * size + 2 * maps, cotangent, cotangent)
    yield Pass(
        "correct_pointwise", 3 * size + maps,
        overwritten("correct_pointwise", a, b, per_channel, None),
        lambda module: module.correct_pointwise(scratch, b, zero, None),
    )  # fmt: skip
    yield Pass(
        "correct", 3 * size + maps,
        overwritten("correct", a, b, factor),
        lambda module: module.correct(scratch, b, zero),
    )  # fmt: skip


def compare(ours: Result, theirs: Result, truth: Result) -> tuple[float, float]:
    """The error of the output that comes closest to its limit, and that limit; infinite if an element is unwritten."""
    worst = (0.0, 0.0)
    for kernel, plain, true in zip(ours, theirs, truth, strict=True):
        if true is None:
            continue
        assert kernel is not None
        assert plain is not None
        error = (kernel.double() - true).abs().max().item()
        plain_error = (plain.double() - true).abs().max().item()
        limit = 2 * plain_error + torch.finfo(kernel.dtype).eps * true.abs().max().item() + 1e-6
        if error != error:
            return float("inf"), limit
        worst = max(worst, (error, limit), key=lambda pair: pair[0] / max(pair[1], 1e-30))
    return worst


def median_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call; on a GPU without the time that the host takes to launch it, and with an empty cache."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(call, return_mode="median") / 1e3
    from torch.utils.benchmark import Timer  # looks for a compiler, which no other command needs

    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.1).median
