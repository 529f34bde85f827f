"""The measurements of the steps, except training runs."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from affnorm_zoo.benchmarks.gpu_evidence.record import StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import Sizes
from affnorm_zoo.benchmarks.kernel_check import check_case, median_seconds, time_case
from affnorm_zoo.benchmarks.networks import Bench
from affnorm_zoo.training.interrupt import die_with_parent

_ROOT = Path(__file__).parents[3]  # of a checkout, which has the tests
Network = tuple[str, ...]  # its name in Sizes.networks, its standard norm, ours


def measure_ceilings(record: StepRecord, sizes: Sizes) -> None:
    """Bytes per second of a copy and operations per second of a matrix product: upper bounds for everything else."""
    record.row("copy", lambda: _copy_bandwidth(record.device, sizes.copy_mib))
    for dtype in ("bfloat16", "float16", "float32"):
        record.row(f"matmul {dtype}", partial(_matmul_speed, record.device, sizes.matmul, getattr(torch, dtype)))


def _copy_bandwidth(device: torch.device, mib: int) -> dict[str, float]:
    source = torch.randint(256, (mib * 2**20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {"gb_per_second": 2 * source.numel() / median_seconds(partial(target.copy_, source), device) / 1e9}


def _matmul_speed(device: torch.device, side: int, dtype: torch.dtype) -> dict[str, float]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return {"tflop_per_second": 2 * side**3 / median_seconds(partial(torch.mm, a, b), device) / 1e12}


def check_kernels(record: StepRecord, sizes: Sizes) -> None:
    """Every kernel against float64."""
    for case in sizes.checked:
        record.row(str(case), partial(check_case, case, record.device))


def time_kernels(record: StepRecord, sizes: Sizes) -> None:
    """Bandwidth of every pass over that of a copy."""
    for case in sizes.timed:
        record.row(str(case), partial(time_case, case, record.device))


def run_kernel_tests(record: StepRecord, sizes: Sizes) -> None:
    """The project's own tests of the kernels."""
    record.row("pytest", lambda: _run_pytest(sizes.kernel_tests, record.path.with_suffix(".pytest.log")))


def _run_pytest(arguments: Sequence[str], log: Path) -> dict[str, Any]:
    """Run pytest, line by line into a log, which outlives a step that is stopped.

    Without pytest-benchmark, whose warning about xdist would be an error.
    """
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:benchmark", *arguments]
    ends_with_us = partial(die_with_parent, signal.SIGKILL)
    with log.open("w", encoding="utf-8") as file:
        run = subprocess.run(
            command, cwd=_ROOT, stdout=file, stderr=subprocess.STDOUT, check=False, preexec_fn=ends_with_us
        )
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"ok": run.returncode == 0, "summary": lines[-1] if lines else "", "failed": failed[:40]}


def measure_network(
    record: StepRecord, sizes: Sizes, network: Network, precisions: Sequence[str], compile_mode: str | None = None
) -> None:
    """Images per second and peak memory of our network and its twin.

    Args:
        compile_mode: measure training steps compiled in this mode only; None: training compiled and eager, and
            inference compiled.
    """
    torch.backends.cudnn.benchmark = True  # of both: the fastest algorithm for each shape
    name, *contenders = network[: 1 + sizes.contenders]
    for precision in precisions:
        bench = _bench(record, sizes, name, precision, compile_mode)
        if compile_mode is not None:
            record.row(f"train {precision} {compile_mode}", partial(bench.train, contenders, compiled=True))
            continue
        record.row(f"train {precision} compiled", partial(bench.train, contenders, compiled=True))
        record.row(f"train {precision} eager", partial(bench.train, contenders, compiled=False))
        record.row(f"infer {precision} compiled", partial(bench.infer, contenders, compiled=True))


def compile_network(record: StepRecord, sizes: Sizes, network: Network) -> None:
    """Compile our network and its twin as :func:`measure_network` does, and run each of their graphs once."""
    name, *contenders = network[: 1 + sizes.contenders]
    bench = _bench(record, sizes, name, "amp_bfloat16", None)
    for normalizer in contenders:
        model = bench.compile(bench.model(normalizer), normalizer)
        record.row(f"{normalizer}, train", bench.train_step(model.train()))
        record.row(f"{normalizer}, infer", bench.infer_step(model.eval()))


def _bench(record: StepRecord, sizes: Sizes, network: str, precision: str, compile_mode: str | None) -> Bench:
    architecture, batch_size, img_size = sizes.networks[network]
    return Bench(
        architecture,
        batch_size,
        img_size,
        record.device,
        precision,
        sizes.rounds,
        steps=sizes.steps,
        compile_mode=compile_mode or "default",
        backend=sizes.backend,
    )
