"""The files of a run folder, and its lock. Files are written atomically: to a temporary name, then renamed."""

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from affnorm_zoo.errors import UsageError

WEIGHTS_FILE = "model.safetensors"
EMA_WEIGHTS_FILE = "ema.safetensors"
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
STATE_FILE = "run_state.json"
REPORT_FILE = "report.json"
METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
DIVERGENCE_FILE = "divergence.png"
LOCK_FILE = "run.lock"
BAD_IMAGES_FILE = "bad_images.txt"  # number and name of each; exists only if there are any
CHECKPOINTS = "checkpoints"


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


def write_state(path: Path, state: str, **details: Any) -> None:
    """Record whether the run is running, completed, preempted or failed: launchers do not forward exit codes."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(
        path / STATE_FILE,
        {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "time": now, **details},
    )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, flush it to the disk and move it to ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write ``content`` atomically."""
    write_atomically(path, lambda temporary: _dump(temporary, content))


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file from :func:`write_json`; empty if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit of the repository that the run was started in, marked if the working tree differs."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def _dump(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
