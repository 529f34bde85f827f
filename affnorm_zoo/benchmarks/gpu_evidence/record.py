"""The result file of one step. It is written after each row, so a killed step keeps its rows."""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.files import read_json, write_json

# states of a step; FINISHED steps are not repeated
RUNNING, OK, FAILED, TIMED_OUT, CUT_OFF, LEFT_OUT = "running", "ok", "failed", "timed out", "cut off", "left out"
FINISHED = (OK, FAILED, TIMED_OUT)
DEVICE_LOST = 75  # exit code: a kernel made the GPU unusable for this process; the other rows need a new process


class StepRecord:
    """The results of a step: rows by name, each a dict of numbers or an ``error``.

    Args:
        path: the JSON file; rows already in it are kept and not measured again.
        device: the measured device.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self.rows: dict[str, dict[str, Any]] = read_json(path).get("rows", {})
        self.environment = {**describe_environment(device), "threads": torch.get_num_threads()}
        self.write(RUNNING)

    def row(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measure a row unless an earlier attempt has done so, and write it. A failure is written too.

        Returns:
            The result of ``measure``; None if it failed.
        """
        if name not in self.rows:
            start = time.perf_counter()
            try:
                found: dict[str, Any] = {"results": measure()}
            except Exception as error:  # any error is recorded in the row, then the next row starts
                message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                traceback.print_exc()  # into the step's log
                found = {"error": message}
            self.rows[name] = {**found, "seconds": round(time.perf_counter() - start, 3)}
            self.write(RUNNING)
            if "error" in found:
                self._leave_if_device_is_lost()
        return self.rows[name].get("results")

    def finish(self) -> str:
        """Write the step's final state: failed if a row has an error or a result that is not ``ok``."""
        status = FAILED if any(is_failed(row) for row in self.rows.values()) else OK
        self.write(status)
        return status

    def write(self, status: str) -> None:
        write_json(self.path, {"status": status, "environment": self.environment, "rows": self.rows})

    def _leave_if_device_is_lost(self) -> None:
        """Exit after an illegal access: every later call of this process fails, so a new one measures the rest."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                sys.exit(DEVICE_LOST)


def is_failed(row: dict[str, Any]) -> bool:
    """Whether a row has an error, or a result that is not ``ok``."""
    results = row.get("results")
    parts = results if isinstance(results, list) else [results]
    return "error" in row or any(isinstance(part, dict) and part.get("ok") is False for part in parts)
