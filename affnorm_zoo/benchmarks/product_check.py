"""The matrix product with the normaliser in it: right against float64, and timed beside the library's and passes."""

from functools import partial
from typing import Any

import torch

from affnorm_zoo.benchmarks.kernel_check import compare, median_seconds
from affnorm_zoo.kernels._launch import PRODUCT_TILES, ProductTile
from affnorm_zoo.ops import linear

# (pixels, channels in, channels out): the 1x1 convolutions of a ResNet-50 at 64 images, a ViT-S's layers at 128
SHAPES = (
    (200704, 64, 256), (200704, 256, 64), (50176, 128, 512), (50176, 512, 128), (12544, 256, 1024), (12544, 1024, 256),
    (3136, 512, 2048), (3136, 2048, 512), (25216, 384, 1152), (25216, 384, 1536), (25216, 1536, 384),
)  # fmt: skip


def check_products(
    device: torch.device,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    dtype: torch.dtype = torch.bfloat16,
    tiles: tuple[ProductTile, ...] = PRODUCT_TILES,
) -> list[dict[str, Any]]:
    """Run an affine_like layer's forward both ways on fresh random rows, into poisoned memory.

    Returns:
        One row a shape: the worst tile's largest error and its limit (twice the error of the passes plus an ulp of the
        largest value), seconds by the library's product and passes, seconds of the kernel and its fastest tile.

    Raises:
        AssertionError: the kernel errs by more than its limit, or leaves memory unwritten.
    """
    from affnorm_zoo.kernels.product import normalized_product  # needs Triton

    rows = []
    for pixels, c_in, c_out in shapes:
        x = torch.randn(pixels, c_in, device=device).to(dtype)
        weight = (torch.randn(c_out, c_in, device=device) / c_in**0.5).to(dtype)
        bias = torch.randn(c_out, device=device).to(dtype)
        what = linear.LinearMap(c_in**0.5, c_in**0.5, False, "none")
        by_passes = partial(linear.forward_by_passes, x, weight, bias, what)
        kernels = [partial(normalized_product, x, weight, bias, *what[:3], "none", tile) for tile in tiles]
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
        truth = linear.forward_by_passes(x.double(), weight.double(), bias.double(), what)
        errors = [compare(kernel(), by_passes(), truth) for kernel in kernels]
        torch.use_deterministic_algorithms(False)
        error, limit = max(errors, key=lambda pair: pair[0] / pair[1])
        assert error <= limit, f"product of {pixels} pixels, {c_in} to {c_out}: error {error:.3g} exceeds {limit:.3g}"
        seconds, tile = min((median_seconds(kernel), tile) for kernel, tile in zip(kernels, tiles, strict=True))
        rows.append(
            {
                "shape": (pixels, c_in, c_out),
                "dtype": str(dtype).removeprefix("torch."),
                "error": error,
                "limit": limit,
                "passes_seconds": median_seconds(by_passes),
                "kernel_seconds": seconds,
                "tile": tile,
            }
        )
    return rows
