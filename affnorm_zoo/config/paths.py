import os
from contextlib import suppress
from pathlib import Path


def expand_home(path: str) -> str:
    """Replace ``~`` or ``~user`` at the start of a path by that home folder, where there is one."""
    with suppress(RuntimeError):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return path


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder; no, where pathlib may raise: for what is too long or holds a zero byte."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; see :func:`is_folder`."""
    return os.path.isfile(path)  # noqa: PTH113
