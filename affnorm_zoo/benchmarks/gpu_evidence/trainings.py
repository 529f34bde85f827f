"""Train on a GPU: several processes share the runs of a sweep, because one small network does not fill the device."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from affnorm_zoo.benchmarks.gpu_evidence.record import StepRecord
from affnorm_zoo.benchmarks.gpu_evidence.sizes import Sizes
from affnorm_zoo.data import pack
from affnorm_zoo.studies.sweep import FINAL_SEED, SweepConfig, Trial, config_of, final_trials, load_sweep, read_result
from affnorm_zoo.training.interrupt import die_with_parent


def train_sweep(
    record: StepRecord, sizes: Sizes, file: Path, packed: Path, find_data: Callable[[], Path], output: Path
) -> None:
    """Make the runs of a sweep. A run that was stopped resumes from its checkpoint.

    Args:
        file: the sweep's YAML.
        packed: the packed data set; created if missing.
        find_data: returns the folder to pack.
        output: folder of the sweep's results and runs.
    """
    sweep = load_sweep(file)
    sweep = replace(sweep, seeds=min(sweep.seeds, sizes.most_seeds))
    record.row("data", partial(_pack, sweep, sizes, packed, find_data))
    overrides = [f"data.path={packed}", *sizes.overrides]
    command = [sys.executable, "scripts/sweep.py", str(file), *overrides, "--output", str(output)]
    command += ["--seeds", str(sweep.seeds)]
    record.row("processes", partial(_run_all, command, sizes.processes))
    for arm in sweep.arms:
        record.row(arm, partial(_scores, sweep, arm, output))


def _pack(sweep: SweepConfig, sizes: Sizes, packed: Path, find_data: Callable[[], Path]) -> str:
    """Pack the data unless another step has done so, or is doing so right now."""
    packed.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(packed.with_suffix(".lock")):
        if not packed.is_file():
            overrides = (f"data.path={find_data()}", *sizes.overrides, f"data.workers={sizes.pack_workers}")
            trial = Trial(arm=sweep.baseline, point=sweep.points[0], seed=FINAL_SEED, is_final=True)
            pack(config_of(sweep, trial, overrides).data, packed)
    return packed.name


def _run_all(command: Sequence[str], count: int) -> dict[str, Any]:
    """Run the same command several times at once; the runs of a sweep are shared between its processes."""
    ends_with_us = partial(die_with_parent, signal.SIGKILL)
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"}  # each process has its own pool of compilers
    running = [subprocess.Popen(command, env=environment, preexec_fn=ends_with_us) for _ in range(count)]
    codes = [process.wait() for process in running]
    return {"ok": not any(codes), "exit_codes": codes}


def _scores(sweep: SweepConfig, arm: str, folder: Path) -> dict[str, Any]:
    """Top-1 of an arm's runs in the order of their seeds."""
    results = [read_result(folder, trial) for trial in final_trials(sweep, arm, folder)]
    return {"ok": results != [] and all(results), "top1": [result["top1"] for result in results if result]}
