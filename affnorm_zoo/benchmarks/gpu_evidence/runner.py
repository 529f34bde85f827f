"""Run the steps in order, most valuable first, each in its own process."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from affnorm_zoo.benchmarks.gpu_evidence.record import (
    CUT_OFF,
    DEVICE_LOST,
    FAILED,
    FINISHED,
    LEFT_OUT,
    OK,
    TIMED_OUT,
    is_failed,
)
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs.files import read_json, write_json
from affnorm_zoo.training.interrupt import die_with_parent

_MOST_PROCESSES = 5  # per step, if kernels repeatedly make the GPU unusable


class TimedStep(Protocol):
    """What the runner needs of a step: name, expected seconds, limit in seconds, and whether nothing may run beside."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def limit(self) -> float: ...
    @property
    def alone(self) -> bool: ...


@dataclass(frozen=True)
class Outcome:
    """The state of a step after this call, as table cells."""

    name: str
    status: str
    seconds: float
    remark: str = ""


def run_steps(
    steps: Sequence[TimedStep],
    output: Path,
    command: Callable[[str], list[str]],
    *,
    budget: float | None = None,
    retry: bool = False,
    environment: dict[str, str] | None = None,
    after_each: Callable[[], None] = lambda: None,
    jobs: int = 1,
) -> Iterator[Outcome]:
    """Run the unfinished steps, and report how each step ended.

    Args:
        steps: in order, most valuable first.
        output: folder of the result files ``NAME.json`` and logs ``NAME.log``.
        command: the command line of the process that runs a step and writes its result file.
        budget: seconds for the whole call; a step expected to take longer than the rest is skipped.
        retry: repeat steps that failed or took too long, but only their failed rows.
        environment: additional environment variables of the processes.
        after_each: called after each step.
        jobs: how many steps run at the same time. Steps with ``alone`` run one by one.

    Raises:
        UsageError: another process runs steps into this folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + (float("inf") if budget is None else budget)

    def run(step: TimedStep) -> Outcome:
        return _run_unless_finished(step, output, command(step.name), end, retry, environment or {})

    try:
        with FileLock(output / "run.lock", timeout=0), ThreadPoolExecutor(jobs) as pool:
            for alone, group in groupby(steps, attrgetter("alone")):
                for outcome in map(run, group) if alone else pool.map(run, list(group)):
                    yield outcome
                    after_each()
    except Timeout as error:
        raise UsageError(f"another process runs steps in {output}: wait for it, or choose another folder") from error


def _run_unless_finished(
    step: TimedStep, output: Path, command: list[str], end: float, retry: bool, environment: dict[str, str]
) -> Outcome:
    path = output / f"{step.name}.json"
    before = read_json(path)
    status = before.get("status")
    if status == OK or (status in FINISHED and not retry):
        return Outcome(step.name, status, before["seconds"], "from an earlier call")
    if retry and status in FINISHED:
        before["rows"] = {name: row for name, row in before.get("rows", {}).items() if not is_failed(row)}
        write_json(path, before)
    left = end - time.monotonic()
    if step.seconds > left:
        return Outcome(step.name, LEFT_OUT, 0.0, f"needs {step.seconds:.0f} s, {max(left, 0):.0f} s are left")
    start = time.monotonic()
    code: int | None = DEVICE_LOST
    for _ in range(_MOST_PROCESSES):
        if code == DEVICE_LOST:
            remaining = min(start + step.limit, end) - time.monotonic()
            code = _run_process(command, output / f"{step.name}.log", environment, remaining)
    seconds = round(before.get("seconds", 0.0) + time.monotonic() - start, 1)
    return _close(path, step, code, seconds, is_at_end=time.monotonic() >= end)


def _close(path: Path, step: TimedStep, code: int | None, seconds: float, is_at_end: bool) -> Outcome:
    """Write into the result file how the process ended, if it could not do so itself."""
    content: dict[str, Any] = {"rows": {}, **read_json(path)}
    remark = ""
    if code is None:
        content["status"] = CUT_OFF if is_at_end else TIMED_OUT
        remark = f"stopped after {seconds:.0f} s with {len(content['rows'])} rows"
    elif code != 0:
        content["status"] = FAILED
        remark = _last_line(path.with_suffix(".log")) or f"exit code {code}"
        content["error"] = remark
    elif content.get("status") == FAILED:
        remark = f"rows that failed: {', '.join(name for name, row in content['rows'].items() if is_failed(row))}"
    write_json(path, {"step": step.name, **content, "seconds": seconds})
    return Outcome(step.name, content.get("status", FAILED), seconds, remark)


def _run_process(command: list[str], log: Path, environment: dict[str, str], seconds: float) -> int | None:
    """Run a command and everything that it starts. Returns the exit code, or None after a timeout."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # its own group, so that loader and compiler processes end with it
            preexec_fn=partial(die_with_parent, signal.SIGKILL),  # or the step outlives a killed runner
        )
        try:
            return process.wait(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # all of them have already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
