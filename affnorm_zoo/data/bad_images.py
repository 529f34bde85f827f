from collections.abc import Callable
from ctypes import c_bool
from multiprocessing import Lock
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import numpy as np


class BadImages:
    """Which images of a dataset could not be decoded; each counts once, in whichever epoch or process it is met.

    The workers of a process share the record. After :meth:`keep_in` has named a file, all processes of a run and the
    runs that resume it share it too.

    Args:
        num_images: in the dataset.
        name_of: gives the name of the image with a number, on one line.
    """

    def __init__(self, num_images: int, name_of: Callable[[int], str]) -> None:
        self._is_bad = RawArray(c_bool, num_images)
        self._name_of = name_of
        self._lock = Lock()
        self.file: Path | None = None

    def keep_in(self, file: Path, earlier: Path | None = None) -> None:
        """Keep the record in a file from now on; ``earlier`` is the file of the run that this one resumes."""
        known = self._indices() | (_read(earlier) if earlier is not None else set())
        self.file = file
        for index in sorted(known - _read(file)):
            self._write(index)

    def add(self, index: int) -> bool:
        """Note an image; return whether it is new to this process and its workers."""
        with self._lock:
            if self._is_bad[index]:
                return False
            self._is_bad[index] = True
            if self.file is not None and index not in _read(self.file):
                self._write(index)
            return True

    def __len__(self) -> int:
        return len(self._indices() if self.file is None else _read(self.file))

    def _indices(self) -> set[int]:
        return set(np.flatnonzero(np.frombuffer(memoryview(self._is_bad), dtype=bool)).tolist())

    def _write(self, index: int) -> None:
        assert self.file is not None
        line = f"{index}\t{self._name_of(index)}\n"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line)  # one short appending write, which other processes cannot interleave


def _read(file: Path) -> set[int]:
    """Numbers of the images in a file; an incomplete last line does not count yet."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return {int(line.partition("\t")[0]) for line in lines}
