"""What the loop asks of the host beside the step itself, in counts, which a busy machine does not change."""

import json
import random
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from runs import TINY, invoke
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from affnorm_zoo.benchmarks.loop import _bare_step, _loop_step
from affnorm_zoo.cli.benchmark import benchmark
from affnorm_zoo.config import load_config
from affnorm_zoo.data import ShardedBatches
from affnorm_zoo.data.in_memory import InMemoryLoader, KeptBatches
from affnorm_zoo.training.assemble import assemble
from affnorm_zoo.training.interrupt import Interrupt
from affnorm_zoo.training.rates import gradients_over_kappa
from affnorm_zoo.training.run_log import RunLog
from affnorm_zoo.training.seeding import seed_generators

UPDATES = 2
SMALL = (*TINY, "train.global_batch_size=8", "train.micro_batch_size=8", "runtime.log_updates=50")


class Operations(TorchDispatchMode):
    """The tensor operations that are carried out, and those of them that see a tensor of the CPU."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.on_cpu = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.on_cpu.append(func)
        return result


def calls(step):
    """Python and C functions that are called per update."""
    events = []
    sys.setprofile(lambda frame, event, argument: events.append(1) if event in ("call", "c_call") else None)
    try:
        for _ in range(UPDATES):
            step()
    finally:
        sys.setprofile(None)
    return len(events) / UPDATES


def operations(step):
    with Operations() as mode:
        for _ in range(UPDATES):
            step()
    return mode.count / UPDATES


@pytest.mark.parametrize(
    "overrides",
    [("optim.name=sgd",), ("optim.bias_over_kappa=true", "optim.clip_grad=1.0", "data.hflip=0.5", "data.cutmix=1.0")],
    ids=["plain", "clipped and mixed"],
)
def test_an_update_costs_few_calls_more_than_its_bare_step(overrides, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    config, accelerator = load_config(overrides=[*SMALL, *overrides]), Accelerator(cpu=True)
    parts = assemble(config, accelerator)
    with Interrupt() as interrupt:
        log = RunLog(tmp_path / "metrics.jsonl", accelerator, 0, None, None)
        loop, bare = _loop_step(parts, config, log, interrupt), _bare_step(parts)
        loop(), bare()
        over_calls, over_operations = calls(loop) - calls(bare), operations(loop) - operations(bare)
    # one call takes about 0.1 µs and one operation of a few numbers about 3 µs
    assert 0 < over_calls < 500
    assert 0 < over_operations < 60


def test_the_generators_get_the_values_of_accelerate():
    words = np.random.SeedSequence((3, 1, 4, 0)).generate_state(1)
    draws = []
    for seed in (lambda: set_seed(int(words[0])), lambda: seed_generators(torch.device("cpu"), 3, 1, 4, 0)):
        seed()
        draws.append((random.random(), np.random.rand(), torch.rand(3).tolist()))
    assert draws[0] == draws[1]


def test_after_the_epoch_has_begun_no_batch_is_copied_from_the_host():
    images, labels = torch.zeros(64, 3, 8, 8, dtype=torch.uint8), torch.arange(64)
    batches = ShardedBatches(64, 16, 8)
    loader = InMemoryLoader(images, labels, batches, padding=1, hflip=0.5, seed=0, device=torch.device("meta"))
    with Operations() as mode:
        batches_ = iter(loader)
        next(batches_)
        assert mode.on_cpu  # the order and the draws of the epoch
        mode.on_cpu.clear()
        assert len(list(batches_)) == 7
    assert not mode.on_cpu


def test_validation_batches_are_kept_on_the_device_once_all_have_been_seen():
    passes = []

    def loader():
        passes.append(1)
        image = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
        return ((image + number, torch.tensor([number] * 2)) for number in range(3))

    class Loader:
        def __iter__(self):
            return loader()

    kept = KeptBatches(Loader(), torch.device("cpu"))
    next(iter(kept))  # as an evaluation that a signal cuts off
    for _ in range(3):
        assert [labels.tolist() for _, labels in kept] == [[0, 0], [1, 1], [2, 2]]
    assert len(passes) == 2
    with Operations() as mode:
        on_meta = KeptBatches(Loader(), torch.device("meta"))
        list(on_meta)
        mode.on_cpu.clear()
        assert all(images.device.type == "meta" for images, _ in on_meta)
    assert not mode.on_cpu


def test_gradients_over_kappa_are_as_one_by_one():
    parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(4)]
    for parameter in parameters[:3]:
        parameter.grad = torch.randn(5)
    before = [p.grad.clone() for p in parameters[:3]]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "kappa": 3.7}], lr=1.0)
    with gradients_over_kappa(optimizer):
        clip_grad_norm_(parameters, 1e9)
        assert torch.equal(parameters[0].grad, before[0])
        for parameter, gradient in zip(parameters[1:3], before[1:], strict=True):
            assert torch.equal(parameter.grad, gradient / 3.7)
    for parameter, gradient in zip(parameters[1:3], before[1:], strict=True):
        assert torch.equal(parameter.grad, gradient / 3.7 * 3.7)


def test_the_benchmark_reports_what_an_update_costs_the_host(tmp_path):
    output = tmp_path / "loop.json"
    result = invoke(benchmark, "loop", *SMALL, "optim.clip_grad=1.0", "--rounds", 2, "--updates", 2, "--output", output)
    assert result.exit_code == 0
    results = json.loads(output.read_text())
    assert set(results["host_ms"]) == {"loop", "bare_step", "over_bare_step"}
    assert results["host_ms"]["loop"] > results["host_ms"]["over_bare_step"]
    assert results["first_update_seconds"] > 1e-3 * results["host_ms"]["loop"]
    assert results["parameter_tensors"] == 20
