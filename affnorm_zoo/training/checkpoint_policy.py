"""The checkpoint policy: when a run is saved, and which of its checkpoints are kept."""

import math
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from affnorm_zoo.config import CheckpointConfig
from affnorm_zoo.errors import UsageError
from affnorm_zoo.runs import checkpoint
from affnorm_zoo.training.processes import on_main
from affnorm_zoo.training.state import Progress, RunState, save_state


class CheckpointPolicy:
    """Saves a run's state into ``root`` as configured, and removes old checkpoints; ``metric`` ranks them."""

    def __init__(self, root: Path, config: CheckpointConfig, metric: str, updates_per_epoch: int) -> None:
        self.root = root
        self.config = config
        self.metric = metric
        self.milestones = {checkpoint.checkpoint_name(epoch * updates_per_epoch) for epoch in config.milestones}
        self._last_save = time.monotonic()

    def is_due_within_epoch(self, progress: Progress) -> bool:
        """Whether this process wants to save now; processes may disagree."""
        updates, minutes = self.config.every_updates, self.config.every_minutes
        return (updates is not None and progress.windows % updates == 0) or (
            minutes is not None and time.monotonic() - self._last_save > 60 * minutes
        )

    def is_due_after_epoch(self, progress: Progress, is_last: bool) -> bool:
        """Whether to save at the end of an epoch, the same on every process. A new best result is always saved."""
        name = checkpoint.checkpoint_name(progress.windows)
        return (
            is_last
            or progress.epoch % self.config.every_epochs == 0
            or name in self.milestones
            or progress.best.get("checkpoint") == name
        )

    def note_result(self, progress: Progress, record: dict[str, Any]) -> None:
        """Record an epoch's metric if it is finite and the best so far."""
        weights, metric = self.metric.split(".")
        value = record[weights][metric]
        sign = -1 if metric in ("loss", "ece") else 1
        best = progress.best.get("value")
        if math.isfinite(value) and (best is None or sign * value > sign * best):
            progress.best = {
                "metric": self.metric,
                "value": value,
                "epoch": record["epoch"],
                "checkpoint": checkpoint.checkpoint_name(progress.windows),
            }

    def save(self, state: RunState) -> None:
        """Save; every process must call it.

        Raises:
            UsageError: the checkpoint cannot be written, for example to a full disk; earlier ones are untouched.
        """
        content = state.gather()
        on_main(state.accelerator, lambda: self._write(content, state.progress))
        self._last_save = time.monotonic()

    def _write(self, content: dict[str, Any], progress: Progress) -> None:
        folder = self.root / checkpoint.checkpoint_name(progress.windows)
        try:
            checkpoint.commit(folder, lambda temporary: save_state(content, temporary))
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"checkpoint {folder} could not be written ({error}); the earlier ones are untouched. Free disk space "
                "and resume"
            ) from error
        if progress.best.get("checkpoint") == folder.name:
            checkpoint.point_to_best(folder)
        pinned = {progress.best.get("checkpoint", ""), *self.milestones}
        checkpoint.prune(self.root, self.config.keep_last, pinned)
