"""The client of the Hub, with time-outs added."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from affnorm_zoo.hub.errors import HubError

TIMEOUT_SECONDS = 60  # of silence, in any request
OVERALL_SECONDS = 3600.0  # of a push or a pull

Result = TypeVar("Result")


@contextmanager
def hub_client(token: str | bool | None = None) -> Iterator[HfApi]:
    """An API object whose requests end after a minute of silence, while the context lasts."""

    def make_client() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT_SECONDS
        return client

    set_client_factory(make_client)
    try:
        yield HfApi(token=token, library_name="affnorm_zoo")
    finally:
        set_client_factory(default_client_factory)


def within(seconds: float, action: str, exchange: Callable[[], Result]) -> Result:
    """Return the result of ``exchange``, which may take this many seconds.

    A server that sends a byte now and then does not trigger the time-out of silence, and part of the client is native
    code that cannot be stopped from here. An exchange that takes too long is left to its thread, which ends with the
    process.

    Args:
        action: what is attempted, for the message.

    Raises:
        HubError: it took longer. Otherwise what ``exchange`` raises.
    """
    with ThreadPool(1) as pool:
        try:
            return pool.apply_async(exchange).get(seconds)
        except multiprocessing.TimeoutError:
            raise HubError(f"{action} took more than {seconds:g} s: try again, or allow it more time") from None
