"""Signal and memory handling of loader workers: they neither kill the run nor outlive it."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from affnorm_zoo.errors import UsageError

_SHARED_MEMORY = Path("/dev/shm")
_PREFETCH = 2  # batches a worker holds, torch's default


def shield_worker(worker_id: int) -> None:  # noqa: ARG001 torch calls it with the worker's number
    """Ignore a SIGTERM or Ctrl-C for the whole process group; the main process ends its workers itself.

    A worker that dies of it would kill the main process while it writes its last checkpoint. A worker that ignores it
    could not be ended. So a thread waits for the signal and obeys it if it comes from the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            os._exit(0)


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Report a dead worker as a :class:`UsageError`: it often ran out of memory.

    Raises:
        UsageError: torch has found one dead; it raises that from a signal, which can interrupt any line.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader "):
            raise
        raise UsageError(f"the loader failed: {str(error).splitlines()[0]}; data.workers=0 may show why") from error


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Check that the batches in flight fit into shared memory; a worker that finds it full dies of a bus error.

    Raises:
        UsageError: they do not.
    """
    if not workers or not _SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(_SHARED_MEMORY).free, (workers * _PREFETCH + 1) * batch_bytes
    if needed > free:
        raise UsageError(
            f"{workers} workers hold up to {needed / 2**20:.0f} MiB in {_SHARED_MEMORY}, which has {free / 2**20:.0f} "
            "free: lower data.workers or train.micro_batch_size, or enlarge it (docker run --shm-size)"
        )
