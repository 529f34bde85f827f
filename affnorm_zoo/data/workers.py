"""What keeps loader workers from taking a run down with them, or surviving it."""

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
    """Let a SIGTERM or Ctrl-C meant for the whole process group pass by; the main process ends its workers itself.

    A worker that dies of it would end the main process in the middle of its last checkpoint. One that ignores it
    could not be ended; so a thread waits for the signal and obeys it when it comes from the parent.
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
    """Report a worker that has died as an error of the user's: it often lacks memory.

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
    """See that the batches in flight fit into shared memory; a worker that finds it full dies of a bus error.

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
