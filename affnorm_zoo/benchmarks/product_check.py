"""Check the fused matrix product and normaliser against float64, and time it against the library's product."""

from functools import partial
from typing import Any

import torch

from affnorm_zoo.benchmarks.kernel_check import compare, median_seconds
from affnorm_zoo.kernels._launch import PRODUCT_TILES, ProductTile
from affnorm_zoo.ops import linear

Shape = tuple[int, int, int]  # pixels, channels in, channels out


def check_product(
    shape: Shape, device: torch.device, dtype: str = "bfloat16", tiles: tuple[ProductTile, ...] = PRODUCT_TILES
) -> dict[str, Any]:
    """Run an affine_like layer's forward both ways on fresh random rows, into poisoned memory.

    Returns:
        The worst tile's largest error, its limit (twice the error of the passes plus an ulp of the largest value) and
        whether it is within the limit. Seconds of the library's product with passes, of the library's product alone,
        and of the kernel with its fastest tile.
    """
    from affnorm_zoo.kernels.product import normalized_product  # needs Triton

    pixels, c_in, c_out = shape
    x = torch.randn(pixels, c_in, device=device).to(getattr(torch, dtype))
    weight = (torch.randn(c_out, c_in, device=device) / c_in**0.5).to(x)
    bias = torch.randn(c_out, device=device).to(x)
    what = linear.LinearMap(c_in**0.5, c_in**0.5, False, "none")
    by_passes = partial(linear.forward_by_passes, x, weight, bias, what)
    kernels = [partial(normalized_product, x, weight, bias, *what[:3], "none", tile) for tile in tiles]
    truth = linear.forward_by_passes(x.double(), weight.double(), bias.double(), what)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    try:
        errors = [compare(kernel(), by_passes(), truth) for kernel in kernels]
    finally:
        torch.use_deterministic_algorithms(False)
    error, limit = max(errors, key=lambda pair: pair[0] / pair[1])
    seconds, tile = min((median_seconds(kernel), tile) for kernel, tile in zip(kernels, tiles, strict=True))
    return {
        "shape": shape,
        "dtype": dtype,
        "error": error,
        "limit": limit,
        "ok": error <= limit,
        "passes_seconds": median_seconds(by_passes),
        "library_seconds": median_seconds(partial(torch.nn.functional.linear, x, weight, bias)),
        "kernel_seconds": seconds,
        "tile": tile,
    }
