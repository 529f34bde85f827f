"""The forward pass of a layer whose outputs read one pixel or row each, in the faster of two ways on a GPU.

One way is the library's matrix product between two passes over memory; the other is a single fused kernel. Which one
is faster depends on the shape and the GPU. If ``torch.backends.cudnn.benchmark`` is set, both are timed, once per
shape. Otherwise, and in float32, the library's product is used.
"""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from affnorm_zoo.kernels._launch import PRODUCT_TILES, ProductTile, next_power_of_2
from affnorm_zoo.ops import passes

Product = Callable[[], tuple[Tensor, ...]]
_fastest: dict[Hashable, ProductTile | None] = {}  # per shape so far: the kernel's tile, or None for the passes


def may_fuse(x: Tensor) -> bool:
    """Whether a fused kernel supports this input, and timing it is allowed."""
    return (
        passes.use_kernels(x)
        and x.dtype in (torch.bfloat16, torch.float16)
        and torch.backends.cudnn.benchmark
        and not torch.cuda.is_current_stream_capturing()  # a graph cannot hold a measurement
    )


def run_fastest(by_passes: Product, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """Return the output and the factor per pixel, in whichever way is faster.

    Args:
        by_passes: computes both, and possibly more, with the library's product.
        x, weight, others: the arguments of :func:`affnorm_zoo.kernels.product.normalized_product` except the tile.
    """
    from affnorm_zoo.kernels.product import normalized_product  # Triton exists on Linux only

    fused: Callable[..., tuple[Tensor, ...]] = partial(normalized_product, x, weight, *others)
    # rounded up, so that an uneven last batch is not measured again
    key = (x.device, x.dtype, next_power_of_2(x.numel() // x.shape[1]), tuple(weight.shape), x.stride(1) == 1)
    if key not in _fastest:
        candidates: dict[ProductTile | None, Product] = {None: by_passes}
        for tile in fitting_tiles(x.device):
            candidates[tile] = partial(fused, tile=tile)
        with torch.cuda.device_of(x):  # which the timer waits for
            times = [(seconds(candidate), choice) for choice, candidate in candidates.items()]
        _fastest[key] = min(times, key=lambda pair: pair[0])[1]
    fastest = _fastest[key]
    return by_passes() if fastest is None else fused(tile=fastest)


def fitting_tiles(device: torch.device) -> list[ProductTile]:
    """The tiles that fit the shared memory of the GPU; none before compute capability 8."""
    gpu = torch.cuda.get_device_properties(device)
    if gpu.major < 8:  # no asynchronous copies into shared memory, and Triton no longer compiles for all of them
        return []
    room = gpu.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return [tile for tile in PRODUCT_TILES if tile.shared_bytes <= room]


def seconds(call: Callable[[], Any], calls: int = 5) -> float:
    """Seconds per call, including the launch. The first call may compile and is not timed."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls
