"""The log of a run: metrics.jsonl, a progress bar or plain lines, and trackers."""

import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import LoggerType
from tqdm import tqdm

from affnorm_zoo.errors import UsageError
from affnorm_zoo.training.loop import Window

_logger = logging.getLogger(__name__)
_SECONDS_A_LINE = 10  # seconds between plain lines


def check_trackers(names: Sequence[str]) -> None:
    """Check that accelerate knows the trackers and that they are installed; accelerate silently drops the others.

    Raises:
        UsageError: a tracker is unknown or not installed.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
            raise UsageError(f"runtime.trackers: {name!r} is not known: choose from {known}")
        if name not in installed_trackers():
            raise UsageError(f"runtime.trackers: {name} is not installed: pip install {name}")


def installed_trackers() -> list[str]:
    """The trackers that accelerate can use here."""
    from accelerate.tracking import get_available_trackers

    return [LoggerType(tracker).value for tracker in get_available_trackers()]


def trim_metrics(path: Path, windows: int, epochs: int) -> None:
    """Keep the lines of the first ``windows`` windows and ``epochs`` full epochs; drop a line cut off by a crash."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["window"] <= windows if record["kind"] != "epoch" else record["epoch"] <= epochs:
            kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class RunLog:
    """The log of one process; only the main process writes.

    Args:
        path: path of metrics.jsonl.
        peak_flops: the device's peak operations per second, or None if unknown.
        flops: operations of a training step per image, or None if unknown.
    """

    def __init__(
        self, path: Path, accelerator: Accelerator, total: int, flops: float | None, peak_flops: float | None
    ) -> None:
        self.path = path
        self.accelerator = accelerator
        self.total = total
        self.flops_ratio = flops / (peak_flops * accelerator.num_processes) if flops and peak_flops else None
        self.bar: tqdm | None = None
        self._last_line = time.perf_counter()

    def start(self, windows: int) -> None:
        """Show a progress bar from this window on, if the output is a terminal."""
        if self.accelerator.is_main_process and sys.stderr.isatty():
            self.bar = tqdm(total=self.total, initial=windows, unit="update", dynamic_ncols=True, smoothing=0.05)

    def advance(self) -> None:
        """Count one window."""
        if self.bar is not None:
            self.bar.update()

    def record_windows(self, windows: list[Window], epoch: int) -> None:
        """Log windows: one line each in the file, their mean on the terminal."""
        if not windows or not self.accelerator.is_main_process:
            return
        seconds = sum(window.seconds for window in windows)
        speed = sum(window.num_images for window in windows) / seconds
        wait = sum(window.wait_seconds for window in windows) / seconds
        shared = {"images_per_second": round(speed, 1), "data_wait": round(wait, 4)}
        if self.flops_ratio is not None:
            shared["mfu"] = round(speed * self.flops_ratio, 4)
        with self.path.open("a", encoding="utf-8") as file:
            for window in windows:
                loss, norm = float(window.loss), float(window.grad_norm)
                record = {"kind": "update", "update": window.update, "window": window.number, "epoch": epoch + 1,
                          "loss": loss, "grad_norm": norm, "lr": window.lr, **shared}  # fmt: skip
                file.write(_to_line(record))
        last = windows[-1]
        self._track(
            {"loss": float(last.loss), "grad_norm": float(last.grad_norm), "lr": last.lr, **shared}, last.update
        )
        text = (
            f"loss {float(last.loss):.4f}  grad {float(last.grad_norm):.2f}  lr {last.lr:.2e}  {speed:.0f} img/s  "
            f"wait {100 * wait:.0f} %"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif time.perf_counter() - self._last_line > _SECONDS_A_LINE:
            self._last_line = time.perf_counter()
            print(f"update {last.update}/{self.total}  {text}", flush=True)  # noqa: T201 the run's own log

    def record_epoch(self, record: dict[str, Any], text: str) -> None:
        """Log the end of an epoch."""
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_to_line({"kind": "epoch", **record}))
        metrics = {f"{part}/{name}": value for part in ("val", "ema") for name, value in record.get(part, {}).items()}
        self._track(metrics, record["update"])
        tqdm.write(text) if self.bar is not None else print(text, flush=True)  # noqa: T201 likewise

    def record_divergence(self, record: dict[str, Any]) -> None:
        """Log a measurement of the divergence; trackers get the median layer's values."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_to_line({"kind": "divergence", **record}))
        for name in ("cv", "step_cosine", "step_moving_cosine"):
            values = [layer[name] for layer in record["layers"] if layer[name] is not None]
            if values:
                self._track({f"divergence/{name}": statistics.median(values)}, record["update"])

    def close(self) -> None:
        """Remove the bar and close the trackers."""
        if self.bar is not None:
            self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _track(self, metrics: dict[str, Any], update: int) -> None:
        """Pass metrics to the trackers. Their errors, mostly of the network, must not end the run."""
        try:
            self.accelerator.log(metrics, step=update)
        except Exception as error:
            _logger.warning("a tracker failed at update %d: %s", update, error)


def _to_line(record: dict[str, Any]) -> str:
    """Serialise to one JSON line; non-finite floats become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(part) for name, part in value.items()}
        if isinstance(value, list):
            return [finite(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(record), allow_nan=False) + "\n"
