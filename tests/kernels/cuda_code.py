"""What Inductor would run on a GPU, seen without one: python cuda_code.py BLOCK... prints counts as JSON.

A block's training step is traced on a CPU, its graphs are given fake CUDA tensors, and Inductor writes their code for
an H100 that patches describe; nothing is compiled further or run. Runs in a process of its own, because of the patches
and because the other tests import the kernels for Triton's interpreter.
"""

import contextlib
import copy
import json
import math
import re
import sys
from types import SimpleNamespace
from unittest import mock

import timm
import torch
import torch._dynamo.device_interface as interfaces
import torch._inductor.config as inductor
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import compile_fx_inner, select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import affnorm_zoo  # noqa: F401 registers the models

# (model, part of it, shape of its input)
BLOCKS = {
    "bottleneck": ("resnet50_patchnorm", "layer1.1", (64, 256, 56, 56)),
    "downsample": ("resnet50_patchnorm", "layer2.0", (64, 256, 56, 56)),
    "basic": ("resnet18_patchnorm", "layer1.1", (64, 64, 56, 56)),
    "norm_like": ("resnet50_patchnorm_l2", "layer1.1", (64, 256, 56, 56)),
    "grouped": ("resnext50_32x4d_patchnorm", "layer1.1", (64, 256, 56, 56)),
    "batchnorm": ("resnet50", "layer1.1", (64, 256, 56, 56)),
}
H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536, gcnArchName="",
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, is_integrated=0, clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120,
)  # fmt: skip
