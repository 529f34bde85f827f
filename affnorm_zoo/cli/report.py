"""How commands report errors: one line, and an exit code per kind of error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from affnorm_zoo.config import expand_home, is_override
from affnorm_zoo.errors import UsageError
from affnorm_zoo.training import NonFiniteError, PreemptedError
from affnorm_zoo.training.shared_errors import is_first_to_report, shared_errors

USAGE, DIVERGED = 2, 1
_RAISED = f"{UsageError.__module__}.{UsageError.__qualname__}: "


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print an error that the caller can fix as one line and exit: code 2 for usage, 128 + n for signal n."""
    try:
        with shared_errors():
            yield
    except UsageError as error:
        fail(as_line(error), USAGE)
    except NonFiniteError as error:
        fail(f"training diverged: {error}; try a lower optim.lr or a longer optim.warmup_epochs", DIVERGED)
    except PreemptedError as error:
        fail(str(error), 128 + error.signum)


def as_line(error: UsageError) -> str:
    """One line for the terminal: an error from a loader worker has its traceback before the message."""
    return f"error: {str(error).strip().splitlines()[-1].removeprefix(_RAISED)}"


def fail(message: str, code: int) -> None:
    """Print the message, on one process of a run, and exit."""
    if is_first_to_report():
        click.echo(message, err=True)
    sys.exit(code)


def split_config(items: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split a command line into config files and ``section.key=value`` overrides."""
    overrides = [item for item in items if is_override(item)]
    return [expand_home(item) for item in items if item not in overrides], overrides


class _UserPath(click.Path):
    """A path with ``~`` for the home folder, also after ``--option=``, where shells do not expand it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            path = Path(os.fsdecode(super().convert(expand_home(str(value)), param, ctx)))
            path.exists()
            str(path).encode("utf-8")  # which safetensors wants of its files
            return path
        except (OSError, ValueError) as error:  # too long, with a zero byte, or not Unicode
            self.fail(
                f"{str(value)!r:.80} is not a usable path: {getattr(error, 'strerror', None) or error}", param, ctx
            )


class _OutputFile(_UserPath):
    """A file to be written, whose folder need not be there yet; refused before the work that fills it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        existing = path if path.exists() else next(parent for parent in path.absolute().parents if parent.exists())
        if existing.is_dir() == (existing == path) or not os.access(existing, os.W_OK):
            self.fail(f"{path} is not a file that can be written: see {existing}", param, ctx)
        return path


USER_PATH = _UserPath(path_type=Path)
OUTPUT_FILE = _OutputFile(path_type=Path)
COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**32 - 1)  # numpy's
