"""What Inductor would run on a GPU, seen without one: python cuda_code.py BLOCK... prints counts as JSON.

A block's training step is traced on a CPU, its graphs are given fake CUDA tensors, and Inductor writes their code for
an H100 that patches describe; nothing is compiled further or run. Runs in a process of its own, because of the patches
and because the other tests import the kernels for Triton's interpreter.
"""

import contextlib
import copy
import json
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
from affnorm_zoo.ops import passes

# neighbouring blocks, so that what crosses their border shows: model, stage, which blocks, channels of the input
BLOCKS = {
    "bottleneck": ("resnet50_patchnorm", "layer1", slice(1, 3), 256),
    "downsample": ("resnet50_patchnorm", "layer2", slice(0, 2), 256),
    "basic": ("resnet18_patchnorm", "layer1", slice(0, 2), 64),
    "norm_like": ("resnet50_patchnorm_l2", "layer1", slice(1, 3), 256),
    "grouped": ("resnext50_32x4d_patchnorm", "layer1", slice(1, 3), 256),
    "batchnorm": ("resnet50", "layer1", slice(1, 3), 256),
}
IMAGES, SIDE = 64, 56
H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536, gcnArchName="",
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, is_integrated=0, clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120,
)  # fmt: skip


class WrittenError(Exception):
    """Raised with the code in the place of compiling it."""


@contextlib.contextmanager
def fake_gpu():
    """Patches under which Inductor takes this machine for one with an H100, and hands out the code it wrote."""
    device = DeviceProperties(
        type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
    )  # fmt: skip
    answers = {
        torch.cuda: dict(
            is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, _lazy_init=lambda: None,
            get_device_properties=lambda *_: H100, get_device_capability=lambda *_: (9, 0),
            get_device_name=lambda *_: H100.name, synchronize=lambda *_: None, is_initialized=lambda: False,
            is_bf16_supported=lambda *_, **__: True, current_stream=lambda *_: SimpleNamespace(cuda_stream=0),
            get_rng_state=lambda *_: torch.zeros(16, dtype=torch.uint8), set_rng_state=lambda *_: None,
            device=lambda *_: contextlib.nullcontext(), _DeviceGuard=lambda *_: contextlib.nullcontext(),
        ),
        interfaces.CudaInterface: dict(
            is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, synchronize=lambda *_: None,
            get_device_properties=lambda *_: H100, get_compute_capability=lambda *_: 90, get_raw_stream=lambda *_: 0,
            is_bf16_supported=lambda *_, **__: True, is_triton_capable=lambda *_: True, exchange_device=lambda *_: 0,
            raise_if_triton_unavailable=lambda *_: None, maybe_exchange_device=lambda *_: 0,
        ),
        interfaces.CudaInterface.Worker: dict(get_device_properties=lambda *_: H100),
        # cuDNN's choice for images in channels_last
        torch._C: dict(_conv_determine_backend_memory_format=lambda *_, **__: torch.channels_last,
                       _cuda_getCurrentRawStream=lambda *_: 0),
        DeviceProperties: dict(create=classmethod(lambda *_: device)),
        driver: dict(_active=SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32),
                                             get_current_device=lambda: 0)),
        torch.utils._triton: dict(triton_hash_with_backend=lambda: "h" * 16, triton_backend=lambda: None),
        GraphLowering: dict(_compile_to_module=write),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, values in answers.items():
            for name, value in values.items():
                is_method = isinstance(owner, type) and owner.__module__ == interfaces.__name__
                replacement = staticmethod(value) if is_method else value
                stack.enter_context(mock.patch.object(owner, name, replacement, create=True))
        stack.enter_context(inductor.patch(compile_threads=1, fx_graph_cache=False))
        yield


def write(graph):
    code, _ = graph.codegen()
    raise WrittenError(code.value)


def cuda_code(graph, inputs, fake, is_backward):
    """The code for a graph that was traced on a CPU."""
    graph = copy.deepcopy(graph)
    with fake, torch.no_grad(), fake_gpu():
        inputs = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") if torch.is_tensor(t) else t
            for t in inputs
        ]
        for node in graph.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        graph.recompile()
        FakeTensorProp(graph, mode=fake).propagate_dont_convert_inputs(*inputs)
        try:
            compile_fx_inner(graph, inputs, is_backward=is_backward)
        except Exception as error:  # Inductor wraps what a backend raises
            for cause in (error, error.__cause__, getattr(error, "inner_exception", None)):
                if isinstance(cause, WrittenError):
                    return str(cause)
            raise
    raise RuntimeError("Inductor wrote no code")


def training_step(name):
    """The code of a block's forward and backward in bfloat16, channels_last."""
    model, stage, blocks, channels = BLOCKS[name]
    block = timm.create_model(model).get_submodule(stage)[blocks].train()
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    codes = []

    def compiler(is_backward):
        def compile_graph(graph, inputs):
            codes.append(cuda_code(graph, inputs, fake, is_backward))
            return graph

        return compile_graph

    as_on_a_gpu = mock.patch.object(passes, "bias_in_library", return_value=False)
    with fake, as_on_a_gpu, mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        state = {key: empty(t) for key, t in block.state_dict().items() if t.is_floating_point()}
        for key, _ in block.named_parameters():
            state[key].requires_grad_()

        def step(x, *tensors):
            return (torch.func.functional_call(block, dict(zip(state, tensors, strict=True)), (x,)),)

        traced = aot_function(
            step, fw_compiler=compiler(False), bw_compiler=compiler(True),
            partition_fn=min_cut_rematerialization_partition, decompositions=select_decomp_table(),
        )  # fmt: skip
        x = empty(torch.empty(IMAGES, channels, SIDE, SIDE)).requires_grad_()
        (z,) = traced(x, *state.values())
        z.backward(torch.empty_like(z))
    return codes


def empty(t):
    order = torch.channels_last if t.dim() == 4 else torch.contiguous_format
    return torch.empty(t.shape, dtype=torch.bfloat16).to(memory_format=order)


def counts(code):
    """Kernels, convolutions, what is stored in which order, and biases whose gradient the library sums.

    In NCHW order a channel's neighbour is a plane of pixels away, so that an address has that plane as a factor. In
    maps of one number per pixel it is the factor of the image, which comes last.
    """
    kernels = re.findall(r"^triton_\w+ = async_compile\.triton\('\w+', '''(.*?)'''", code, re.S | re.M)
    stores = [store for kernel in kernels for store in re.findall(r"tl\.store\(\w+ \+ \((.*)\), tmp", kernel)]
    call = code[code.index("def call(") :]
    allocated = re.findall(r"empty_strided_cuda\(\(\d+, (\d+), \d+, \d+\), \(\d+, (\d+), \d+, \d+\)", call)
    return {
        "kernels": len(re.findall(r"^\s+triton_\w+\.run\(", call, re.M)),
        "convolutions": len(re.findall(r"= (?:extern_kernels\.convolution|torch\.ops\.aten\.convolution)", call)),
        "nhwc_stores": sum(bool(re.match(r"[rx]\w*( \+ \d+\*\w+)+$", store)) for store in stores),
        "nchw_stores": [store for store in stores if re.search(rf"\b{SIDE * SIDE}\*(?!x\w*$)\w+", store)],
        "nchw_tensors": [pair for pair in allocated if pair[0] != "1" and pair[1] != "1"],  # channels, their stride
        "library_bias_sums": len(re.findall(r"convolution_backward\.default\(.*, True\]\)", call)),
    }


if __name__ == "__main__":
    print(json.dumps({name: dict(zip(("forward", "backward"), map(counts, training_step(name)), strict=True))
                      for name in sys.argv[1:]}))  # fmt: skip
