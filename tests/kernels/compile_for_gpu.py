"""Compile every kernel for a GPU that need not be there: python compile_for_gpu.py 80 90 (compute capabilities).

Runs in a process of its own, because the other tests import the kernels for Triton's interpreter.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from affnorm_zoo.kernels import passes

SIZES = dict.fromkeys(("M", "H", "W", "C", "GROUP_C"), "i32")
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
IMAGES = {"x", "y", "dz", "other", "h", "dx", "vector", "bias"}
MAPS = {"out", "factor", "s", "extra"}


def unused(name, flags):
    """Arguments for which the launchers pass None under these flags."""
    return (
        (name == "bias" and flags.get("HAS_BIAS") is False)
        or (name == "vector" and flags.get("HAS_VECTOR") is False)
        or (name == "extra" and flags.get("HAS_EXTRA") is False)
        or (name == "other" and flags.get("MODE") in (0, 3))
        or (name == "s" and flags.get("MODE") == 0)
    )


def compile_kernel(kernel, flags, dtype, contiguous_channels, capability):
    """Lower one specialisation to machine code."""
    signature, constants = {}, {}
    flags = {**flags, "BLOCK_M": 32, "BLOCK_C": 64}
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
        elif name == "slope":
            signature[name] = "fp32"
        elif name.endswith("c") and contiguous_channels:
            signature[name], constants[name] = "constexpr", 1  # as Triton does with a stride of 1
        else:
            signature[name] = "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


if __name__ == "__main__":
    count = 0
    for capability in map(int, sys.argv[1:]):
        for kernel, variants in FLAGS.items():
            for flags in variants:
                for dtype, contiguous in (("bf16", True), ("fp32", False)):
                    assert compile_kernel(kernel, flags, dtype, contiguous, capability)
                    count += 1
    print(f"{count} kernels compiled")
