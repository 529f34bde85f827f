"""The folder of a run: lock it, choose the checkpoint to resume from, write config.yaml, run.json and its state."""

import logging
import os
import shutil
import socket
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affnorm_zoo.config import RunConfig, config_to_yaml
from affnorm_zoo.errors import UsageError
from affnorm_zoo.evidence.environment import describe_environment
from affnorm_zoo.runs.files import read_json, write_json, write_text
from affnorm_zoo.runs.layout import CONFIG_FILE, LOCK_FILE, REPORT_FILE, RUN_FILE, STATE_FILE
from affnorm_zoo.runs.record import FORMAT, read_record
from affnorm_zoo.runs.resume import check_same_run, choose_checkpoint, fingerprint

_logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run, used by its main process: locked, opened once, and released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None

    def finished_report(self, config: RunConfig, resume: str) -> dict[str, Any]:
        """The report if ``resume="auto"`` finds a finished run; otherwise empty."""
        state = read_json(self.path / STATE_FILE).get("state")
        if resume != "auto" or state != "completed":
            return {}
        report, most = read_json(self.path / REPORT_FILE), config.train.max_updates
        is_done = report["epochs"] >= config.train.epochs or (most is not None and report["windows"] >= most)
        return report if is_done else {}

    def open(
        self,
        config: RunConfig,
        facts: dict[str, Any],
        record: dict[str, Any],
        *,
        resume: str,
        overwrite: bool,
        allow_changes: bool,
    ) -> Path | None:
        """Lock the folder, choose the checkpoint, then write config.yaml and run.json. Checks come before any write.

        Args:
            config: the run's.
            facts: from :func:`affnorm_zoo.runs.resume.describe_facts`.
            record: what run.json states besides.
            resume, overwrite, allow_changes: as for :func:`affnorm_zoo.training.train`.

        Returns:
            The checkpoint to resume from, or None.

        Raises:
            UsageError: the folder is in use or cannot be written to, or the checkpoint is damaged or of another run.
        """
        if is_used(self.path) and resume == "none" and not overwrite:
            raise UsageError(
                f"the output folder {self.path} is already in use: choose another --output, resume with --resume auto, "
                "or replace it with --overwrite"
            )
        if self.path.is_dir():
            self._lock = claim(self.path)
        checkpoint = choose_checkpoint(resume, self.path)
        notes = check_same_run(checkpoint, config, facts, allow_changes) if checkpoint else []
        self._lock = self._lock or claim(self.path)
        if overwrite and resume == "none":
            self._empty()
        self._write_down(config, facts, record, checkpoint, notes)
        for note in notes:
            _logger.warning("the rest of the run will not be bit-equal to an uninterrupted one: %s", note)
        return checkpoint

    def write_state(self, state: str, **details: Any) -> None:
        """Record whether the run is running, completed, preempted or failed: launchers do not forward exit codes."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        holder = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "time": now}
        write_json(self.path / STATE_FILE, {**holder, **details})

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def _empty(self) -> None:
        for item in self.path.iterdir():
            if item.name != LOCK_FILE:
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _write_down(
        self,
        config: RunConfig,
        facts: dict[str, Any],
        record: dict[str, Any],
        checkpoint: Path | None,
        notes: list[str],
    ) -> None:
        resumes = []
        if checkpoint:
            earlier = read_record(self.path)["resumes"] if (self.path / RUN_FILE).is_file() else []
            resumes = [*earlier, {"checkpoint": str(checkpoint), "notes": notes}]
        deciding = {"format": FORMAT, "fingerprint": fingerprint(config, facts), "facts": facts}
        made_by = {"git_commit": git_commit(), "environment": describe_environment(), "resumes": resumes}
        write_text(self.path / CONFIG_FILE, config_to_yaml(config))
        write_json(self.path / RUN_FILE, {**deciding, **record, **made_by})


def claim(path: Path) -> FileLock:
    """Make the folder and lock it against other runs, until the lock is released or the process ends.

    Raises:
        UsageError: the path is a file or cannot be written to, or another run holds the lock.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = read_json(path / STATE_FILE)
        process = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'this host')}"
        raise UsageError(
            f"another run writes to {path} ({process}): wait for it, stop it, or choose another --output"
        ) from error
    except OSError as error:
        raise UsageError(f"the output folder {path} cannot be written to: {error}") from error
    return lock


def is_used(path: Path) -> bool:
    """Whether the folder contains anything other than a lock."""
    return path.is_file() or (path.is_dir() and any(item.name != LOCK_FILE for item in path.iterdir()))


def git_commit() -> str | None:
    """The commit of the repository that the run was started in, marked if the working tree differs."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
