"""The result file of one step, written after each row, so that a killed step keeps the rows that it has."""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from affnorm_zoo.evaluation.environment import describe_environment
from affnorm_zoo.training.run_folder import read_json, write_json

# how a step stands; FINISHED ones are not run again
RUNNING, OK, FAILED, TIMED_OUT, CUT_OFF, LEFT_OUT = "running", "ok", "failed", "timed out", "cut off", "left out"
FINISHED = (OK, FAILED, TIMED_OUT)
DEVICE_LOST = 75  # exit code: a kernel has left the GPU unusable for this process, the other rows need a new one


class StepRecord:
    """What a step has found: rows by name, each a dict of numbers or an ``error``.

    Args:
        path: of the JSON file; rows that it already holds are kept and not measured again.
        device: that is measured.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self.rows: dict[str, dict[str, Any]] = read_json(path).get("rows", {})
        self.environment = {**describe_environment(device), "threads": torch.get_num_threads()}
        self.write(RUNNING)

    def row(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measure a row unless an earlier try has, and write it down; a failure is written down too.

        Returns:
            What ``measure`` has returned; None if it failed.
        """
        if name not in self.rows:
            start = time.perf_counter()
            try:
                found: dict[str, Any] = {"results": measure()}
            except Exception as error:  # whatever it is belongs into the row, and the next row begins
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                traceback.print_exc()  # into the step's log
                found = {"error": message}
            self.rows[name] = {**found, "seconds": round(time.perf_counter() - start, 3)}
            self.write(RUNNING)
            if "error" in found:
                self._leave_if_device_is_lost()
        return self.rows[name].get("results")

    def finish(self) -> str:
        """Write how the step ended: failed if a row has an error or a result that is not ``ok``."""
        status = FAILED if any(is_failed(row) for row in self.rows.values()) else OK
        self.write(status)
        return status

    def write(self, status: str) -> None:
        write_json(self.path, {"status": status, "environment": self.environment, "rows": self.rows})

    def _leave_if_device_is_lost(self) -> None:
        """After an illegal access every later call of the process fails: let a new process measure the rest."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                sys.exit(DEVICE_LOST)


def is_failed(row: dict[str, Any]) -> bool:
    """Whether a row has an error, or results of which one is not ``ok``."""
    results = row.get("results")
    parts = results if isinstance(results, list) else [results]
    return "error" in row or any(isinstance(part, dict) and part.get("ok") is False for part in parts)
