"""Processes that measure a model agree on whether one of them has failed."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import gather_object

from affnorm_zoo.errors import UsageError


@contextmanager
def raised_together(accelerator: Accelerator) -> Iterator[None]:
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
    messages = [message for message in gather_object([str(own) if own is not None else None]) if message is not None]
    if messages:
        raise UsageError(messages[0]) from own
