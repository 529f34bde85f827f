"""What the compiler makes of every kernel for a GPU that need not be there: python gpu_resources.py [all].

The launchers are called with tensors without data, so that each kernel is compiled for sm_90 with the arguments and
the specialisations of a real launch, and not run. Prints JSON, one entry per kernel. Runs in a process of its own,
because the other tests import the kernels for Triton's interpreter.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from affnorm_zoo.kernels import elementwise

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PASSES = {
    "square_sum": lambda x, f, b: elementwise.square_sum(x, f.shape[1]),
    "output, inner bias": lambda x, f, b: elementwise.scale_output(x, f, b, 2.0, "relu"),
    "output, outer bias, kept": lambda x, f, b: elementwise.scale_output(x, f, b, None, "leaky_relu", keep=True),
    "cotangent": lambda x, f, b: elementwise.scale_cotangent(x, f),
    "cotangent, relu": lambda x, f, b: elementwise.scale_cotangent(
        x, f, activation="relu", output=x, kappa=2.0, sum_bias=True
    ),
    "cotangent, leaky, outer bias": lambda x, f, b: elementwise.scale_cotangent(
        x, f, activation="leaky_relu", output=x, bias=b, sum_bias=True
    ),
    "cotangent, inner": lambda x, f, b: elementwise.scale_cotangent(x, f, inner=x, bias=b, kappa=2.0, sum_bias=True),
    "output, gelu": lambda x, f, b: elementwise.scale_output(x, f, b, 2.0, "gelu"),
    "cotangent, gelu": lambda x, f, b: elementwise.scale_cotangent(
        x, f, activation="gelu", inner=x, bias=b, kappa=2.0, sum_bias=True
    ),
    "cotangent, silu": lambda x, f, b: elementwise.scale_cotangent(
        x, f, activation="silu", inner=x, bias=b, kappa=2.0, sum_bias=True
    ),
    "cotangent, bias": lambda x, f, b: elementwise.scale_cotangent(x, f, bias=b, kappa=2.0, sum_bias=True),
    "pointwise": lambda x, f, b: elementwise.correct_pointwise(x, x, f, None),
    "pointwise, extra": lambda x, f, b: elementwise.correct_pointwise(x, x, f, f),
    "correct": lambda x, f, b: elementwise.correct(x, x, f),
}
HEAVIEST = ("output, inner bias", "cotangent, inner", "pointwise, extra")
EVERY = tuple(PASSES)
# of ResNet-50 and ResNet-18, the stem's input, ResNeXt's grouped layers and a depthwise one: channels, width, groups
LAYERS = [(64, 112, 1), (64, 56, 1), (256, 56, 1), (128, 28, 1), (512, 28, 1), (256, 14, 1), (1024, 14, 1), (512, 7, 1),
          (2048, 7, 1), (3, 224, 1), (128, 56, 32), (96, 14, 96)]  # fmt: skip
CHOSEN = [
    ((256, 56, 1), "NHWC", BF16, EVERY),
    ((128, 28, 1), "NCHW", FP32, HEAVIEST),
    ((64, 112, 1), "NHWC", FP16, HEAVIEST),
    ((2048, 7, 1), "NHWC", FP32, HEAVIEST),
    ((3, 224, 1), "NHWC", BF16, HEAVIEST[:1]),
    ((96, 14, 96), "NHWC", FP32, HEAVIEST),
    ((1024, 14, 1), "NCHW", BF16, HEAVIEST),
]


def images(channels: int, width: int, order: str, dtype: torch.dtype) -> torch.Tensor:
    """256 images without data."""
    memory_format = torch.channels_last if order == "NHWC" else torch.contiguous_format
    return torch.empty(256, channels, width, width, dtype=dtype, device="meta").to(memory_format=memory_format)


def compile_passes(cases: list, kernels: list) -> Iterator[dict]:
    """Compile the passes of these cases."""
    for (channels, width, groups), order, dtype, names in cases:
        x = images(channels, width, order, dtype)
        maps = images(groups, width, order, FP32)
        bias = torch.empty(channels, dtype=dtype, device="meta")
        for name in names:
            PASSES[name](x, maps, bias)
            case = f"{name} of {channels} x {width} x {width} in {groups} groups, {order}, {dtype}"
            yield {"case": case} | resources(kernels.pop())


def resources(kernel: triton.compiler.CompiledKernel) -> dict:
    """Registers and bytes of stack and local memory per thread; 64-bit divisions, which are whole subroutines; loops.

    At a barrier in a loop, every warp of a program waits for the others once per round.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", cubin.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", printed).groups()
    ptx = kernel.asm["ptx"]
    divisions = len(re.findall(r"\b(?:div|rem)\.[su]64", ptx))
    loops = re.findall(r"(?s)(\$L__BB\d+_\d+):((?:(?!\$L__BB\d+_\d+:).)*?)bra[^;]*\1", ptx)
    barriers = sum(body.count("bar.sync") for _, body in loops)
    return {"registers": int(registers), "spilled": int(stack) + int(local), "divisions": divisions,
            "loops": len(loops), "barriers_in_loops": barriers}  # fmt: skip


if __name__ == "__main__":
    h100 = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )  # fmt: skip
    driver.set_active(h100)
    compiled: list = []
    JITFunction.__getitem__ = lambda kernel, grid: (
        lambda *args, **constants: compiled.append(kernel.run(*args, grid=grid, warmup=True, **constants))
    )
    everything = sys.argv[1:] == ["all"]
    cases = [(*case, EVERY) for case in product(LAYERS, ("NHWC", "NCHW"), (BF16, FP16, FP32))] if everything else CHOSEN
    print(json.dumps(list(compile_passes(cases, compiled))))
