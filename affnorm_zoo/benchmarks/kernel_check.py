"""Every Triton kernel on the GPU: right against float64 in poisoned memory, and how near it comes to a plain copy."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from affnorm_zoo.ops import passes

SHAPES = ((64, 256, 56, 56), (64, 512, 28, 28), (64, 2048, 7, 7), (64, 64, 112, 112), (3, 37, 13, 11))


def check_kernels(
    device: torch.device, shapes: tuple[tuple[int, ...], ...] = SHAPES, dtype: torch.dtype = torch.bfloat16
) -> list[dict[str, Any]]:
    """Run each kernel on fresh random images of several shapes, in both layouts.

    Args:
        device: a GPU; under Triton's interpreter a CPU.
        shapes: of the images, (N, C, H, W).
        dtype: of the images.

    Returns:
        One row a kernel, shape and layout: the largest error, the limit that it must keep (twice the plain pass's
        error plus an ulp of the largest value), the bytes a second that it moved, and the same of a copy in this run.

    Raises:
        AssertionError: a kernel errs by more than its limit, or leaves memory unwritten.
    """
    from affnorm_zoo.kernels import passes as kernels  # needs Triton

    rows = []
    for shape in shapes:
        for layout in (torch.channels_last, torch.contiguous_format):
            for name, moved, run in _runs(device, shape, dtype, layout):
                torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
                results = [run(kernels, None), run(passes, None), run(passes, torch.float64)]
                torch.use_deterministic_algorithms(False)
                error, limit = compare(*results)
                assert error <= limit, f"{name} on {shape}: error {error:.3g} exceeds {limit:.3g}"
                source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
                target = torch.empty_like(source)
                seconds = median_seconds(partial(run, kernels, None, fresh=False))
                copy_seconds = median_seconds(partial(target.copy_, source))
                rows.append(
                    {
                        "kernel": name,
                        "shape": shape,
                        "layout": "NHWC" if layout is torch.channels_last else "NCHW",
                        "dtype": str(dtype).removeprefix("torch."),
                        "error": error,
                        "limit": limit,
                        "gb_per_second": moved / seconds / 1e9,
                        "copy_gb_per_second": moved / copy_seconds / 1e9,
                        "of_copy": copy_seconds / seconds,
                    }
                )
    return rows


def _runs(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> Iterator[tuple[str, int, Callable]]:
    """Name, bytes moved and a call ``run(module, cast, fresh)`` for each pass."""
    n, channels, height, width = shape
    a, b = (torch.randn(shape, device=device).to(dtype).to(memory_format=layout) for _ in range(2))
    positive = b.relu()
    factor = torch.rand(n, 1, height, width, device=device) + 0.5
    vector = torch.randn(channels, device=device).to(dtype)
    size, maps = a.numel() * a.element_size(), factor.numel() * 4

    def wide(t: Tensor, cast: torch.dtype | None) -> Tensor:
        return t if cast is None else t.to(cast)

    def square_sum(module: Any, cast: torch.dtype | None, fresh: bool = True) -> tuple:  # noqa: ARG001
        return (module.square_sum(wide(a, cast), 1),)

    def scale_output(module: Any, cast: torch.dtype | None, fresh: bool = True) -> tuple:
        y = wide(a, cast).clone() if fresh else a
        return (module.scale_output(y, wide(factor, cast), wide(vector, cast), None, "relu"),)

    def scale_cotangent(module: Any, cast: torch.dtype | None, fresh: bool = True) -> tuple:  # noqa: ARG001
        given = {"activation": "relu", "output": wide(positive, cast)}
        return module.scale_cotangent(wide(a, cast), wide(factor, cast), **given)[:2]

    def correct_pointwise(module: Any, cast: torch.dtype | None, fresh: bool = True) -> tuple:
        dx = wide(a, cast).clone() if fresh else a
        module.correct_pointwise(dx, wide(b, cast), wide(factor, cast) / channels, None)
        return (dx,)

    def correct(module: Any, cast: torch.dtype | None, fresh: bool = True) -> tuple:
        dx = wide(a, cast).clone() if fresh else a
        module.correct(dx, wide(b, cast), wide(factor, cast))
        return (dx,)

    yield "square_sum", size + maps, square_sum
    yield "scale_output", 2 * size + maps, scale_output
    yield "scale_cotangent", 3 * size + 2 * maps, scale_cotangent
    yield "correct_pointwise", 3 * size + maps, correct_pointwise
    yield "correct", 3 * size + maps, correct


def compare(ours: tuple, theirs: tuple, truth: tuple) -> tuple[float, float]:
    """Largest error over the outputs, and the limit of that output."""
    worst = (0.0, 0.0)
    for kernel, plain, true in zip(ours, theirs, truth, strict=True):
        error = (kernel.double() - true).abs().max().item()
        assert error == error, "an element was left unwritten"
        plain_error = (plain.double() - true).abs().max().item()
        limit = 2 * plain_error + torch.finfo(kernel.dtype).eps * true.abs().max().item() + 1e-6
        worst = max(worst, (error, limit), key=lambda pair: pair[0] / max(pair[1], 1e-30))
    return worst


def median_seconds(call: Callable[[], Any]) -> float:
    """Median time, by torch's timer, which warms up and waits for the device."""
    from torch.utils.benchmark import Timer  # looks for a compiler, which no other command needs

    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=0.1).median
