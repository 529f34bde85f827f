import ctypes
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from affnorm_zoo.training.processes import parent_command


class Interrupt:
    """Graceful shutdown on SIGTERM or Ctrl-C: the loop saves, then stops; a second signal kills.

    ``with Interrupt() as interrupt`` installs the handlers and restores the old ones.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._group: Any = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        _die_with_launcher()
        in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers only there
        for signum in (signal.SIGTERM, signal.SIGINT) if in_main_thread else ():
            self._previous[signum] = signal.signal(signum, self._handle)
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            # checked after every update: on the CPU, so that no process waits for its GPU
            self._group = distributed.new_group(backend="gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def agree(self, *wishes: bool) -> list[bool]:
        """Agree with the other processes on whether to stop and on ``wishes``: if any rank asks, all ranks agree.

        Every process must call it at the same update.

        Returns:
            Whether to stop, then the result of each wish.
        """
        if self._group is None:
            return [self.signum != 0, *wishes]
        flags = torch.tensor([self.signum, *map(int, wishes)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self._group)
        self.signum, *granted = flags.tolist()
        return [self.signum != 0, *map(bool, granted)]

    def _handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 the signature of handlers
        if self.signum:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum


def _die_with_launcher() -> None:
    """Get a signal when ``accelerate launch`` dies. It does not forward signals to a single process."""
    if any("accelerate" in part for part in parent_command()[:3]):
        die_with_parent(signal.SIGTERM)


def die_with_parent(signum: int) -> None:
    """Let Linux send this process a signal when its parent dies."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signum)
