"""Compile every kernel for a GPU that need not be there: python compile_for_gpu.py 80 90 (compute capabilities).

Runs in a process of its own, because the other tests import the kernels for Triton's interpreter.
"""

import sys
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from affnorm_zoo.kernels import passes
from affnorm_zoo.kernels._launch import PRODUCT_TILES
from affnorm_zoo.kernels.product import _product_kernel

SIZES = dict.fromkeys(("M", "H", "W", "C", "GROUP_C", "C_OUT", "C_IN"), "i32")
FLAGS = {
    passes._square_sum_kernel: [{}],
    passes._scale_output_kernel: [{"HAS_BIAS": bias, "ACTIVATION": act} for bias in (False, True) for act in (0, 1, 2)],
    passes._scale_cotangent_kernel: [
        {"MODE": mode, "HAS_VECTOR": vector, "ACTIVATION": act}
        for mode, vector, act in (
            (0, False, 0), (1, False, 1), (1, True, 1), (1, True, 2), (2, False, 0), (3, True, 0),
        )
    ],
    passes._correct_kernel: [
        {"POINTWISE": pointwise, "HAS_EXTRA": extra}
        for pointwise, extra in ((False, False), (True, False), (True, True))
    ],
}  # fmt: skip
PRODUCT_VARIANTS = [({"BIAS": 1, "ACTIVATION": 1}, True), ({"BIAS": 2, "ACTIVATION": 2}, False)]
IMAGES = {"x", "y", "z", "dz", "other", "h", "dx", "vector", "bias", "weight"}
NUMBERS = {"slope", "scale", "kappa"}
MAPS = {"out", "factor", "s", "extra"}


def unused(name, flags):
    """Arguments for which the launchers pass None under these flags."""
    return (
        (name == "bias" and (flags.get("HAS_BIAS") is False or flags.get("BIAS") == 0))
        or (name == "vector" and flags.get("HAS_VECTOR") is False)
        or (name == "extra" and flags.get("HAS_EXTRA") is False)
        or (name == "other" and flags.get("MODE") in (0, 3))
        or (name == "s" and flags.get("MODE") == 0)
    )


def compile_kernel(kernel, flags, dtype, contiguous_channels, capability, **options):
    """Lower one specialisation to machine code."""
    signature, constants = {}, {}
    for name in kernel.arg_names:
        if name in flags:
            signature[name], constants[name] = "constexpr", flags[name]
        elif unused(name, flags):
            signature[name], constants[name] = "constexpr", None
        elif name in IMAGES:
            signature[name] = f"*{dtype}"
        elif name in MAPS:
            signature[name] = "*fp32"
        elif name in SIZES:
            signature[name] = "i32"
        elif name in NUMBERS:
            signature[name] = "fp32"
        elif name.endswith(("_c", "sc", "w_in")) and contiguous_channels:
            signature[name], constants[name] = "constexpr", 1  # as Triton does with a stride of 1
        else:
            signature[name] = "i32"
    # as at a launch with channels in multiples of 16, without which no load is pipelined
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name] == "i32" or signature[name][0] == "*"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


if __name__ == "__main__":
    count = 0
    for capability in map(int, sys.argv[1:]):
        for kernel, variants in FLAGS.items():
            for flags in variants:
                for dtype, contiguous in (("bf16", True), ("fp32", False)):
                    tile = {"BLOCK_M": 32, "BLOCK_C": 64}
                    assert compile_kernel(kernel, {**flags, **tile}, dtype, contiguous, capability).asm["cubin"]
                    count += 1
        for tile, (flags, contiguous) in product(PRODUCT_TILES, PRODUCT_VARIANTS):
            sides = {"BLOCK_M": tile.positions, "BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs}
            launch = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
            compiled = compile_kernel(_product_kernel, {**flags, **sides}, "bf16", contiguous, capability, **launch)
            assert compiled.asm["cubin"]
            one_stage = tile.shared_bytes / tile.num_stages
            assert (one_stage if contiguous else 0) < compiled.metadata.shared <= tile.shared_bytes  # pipelined
            count += 1
    print(f"{count} kernels compiled")
