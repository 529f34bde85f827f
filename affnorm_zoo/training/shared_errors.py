"""An error of one process reaches the user once, and reaches the other processes as what it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import distributed
from torch.distributed import distributed_c10d

from affnorm_zoo.errors import UsageError

_MESSAGE, _REPORTS = "affnorm_zoo/error", "affnorm_zoo/reports"


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise the user's error of one process in the others too, which only see their connection to it break.

    One process alone can find a damaged image in its share of the data, lose a worker, or miss a file that the other
    machines have.

    Raises:
        UsageError: as raised here, or in another process.
    """
    try:
        yield
    except UsageError as error:
        if distributed.is_initialized():
            _store().set(_MESSAGE, str(error))
        raise
    except Exception as error:
        message = _message_of_another()
        if message is not None:
            raise UsageError(message) from error
        raise


def is_first_to_report() -> bool:
    """Claim the report of a failure: true for one process of a run, or for one per machine before they connect."""
    if not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return _store().add(_REPORTS, 1) == 1
    except distributed.DistError:  # without a launcher the first process holds the store, and may have left
        return True


def _message_of_another() -> str | None:
    if not distributed.is_initialized():
        return None
    with suppress(distributed.DistError):
        if _store().check([_MESSAGE]):
            return _store().get(_MESSAGE).decode()
    return None


def _store() -> distributed.Store:
    """What the processes have met at. With a launcher it outlives each of them."""
    return distributed_c10d._get_default_store()
