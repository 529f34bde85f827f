"""The client of the Hub, with the time-outs that it lacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.utils._http import default_client_factory

TIMEOUT_SECONDS = 60  # of silence, in any request


@contextmanager
def hub_client(token: str | bool | None = None) -> Iterator[HfApi]:
    """An API object whose requests end after a minute of silence; for as long as the context lasts."""

    def make_client() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT_SECONDS
        return client

    set_client_factory(make_client)
    try:
        yield HfApi(token=token, library_name="affnorm_zoo")
    finally:
        set_client_factory(default_client_factory)
