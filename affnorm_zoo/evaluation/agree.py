"""Processes that measure a model agree on whether one of them has failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import distributed

from affnorm_zoo.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator  # takes a second, and loading a model needs none


@contextmanager
def raised_together(accelerator: "Accelerator") -> Iterator[None]:
    """Raise an error of one process in all of them at the end of the block, which may hold no collective.

    Otherwise the others would wait for that process, or take its next collective for the one they are in.

    Raises:
        UsageError: the first process's that has one.
    """
    own = None
    try:
        yield
    except UsageError as error:
        own = error
    if accelerator.num_processes == 1:
        if own is not None:
            raise own
        return
    messages: list[str | None] = [None] * accelerator.num_processes
    distributed.all_gather_object(messages, None if own is None else str(own))
    for message in filter(None, messages):
        raise UsageError(message) from own
