"""What a run leaves behind: every file is written beside its place and moved there when it is whole."""

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from affnorm_zoo.errors import UsageError

PACKAGES = ("torch", "timm", "accelerate", "huggingface-hub", "safetensors", "affnorm-zoo")


def check_run_folder(path: Path) -> None:
    """See that the folder can be made or filled.

    Raises:
        UsageError: it exists and is not empty, or is a file.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"the output folder {path} is already in use: choose another --output, or remove it")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file, flush it to the disk and move it to ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    write_atomically(path, lambda temporary: _dump(temporary, json.dumps(content, indent=2) + "\n"))


def write_text(path: Path, content: str) -> None:
    """Write ``content``, whole or not at all."""
    write_atomically(path, lambda temporary: _dump(temporary, content))


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Add one line of JSON to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def describe_environment() -> dict[str, Any]:
    """Hardware and versions, for the report."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _dump(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
