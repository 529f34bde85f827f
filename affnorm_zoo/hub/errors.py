"""One exception for every failure between here and the Hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from affnorm_zoo.errors import UsageError

_BY_STATUS = {
    401: "the token is not valid: get one at the Hub's settings and set HF_TOKEN, or run 'hf auth login'",
    403: "the token may not do this: it needs the write role, and a namespace that is yours",
    412: "the repository changed while you were pushing: run the command again to commit on top of it",
    429: "the Hub asks for fewer requests: wait a few minutes",
}


class HubError(UsageError):
    """The Hub, the connection or its files failed; the message gives the cause and a remedy."""


@contextmanager
def hub_errors(action: str) -> Iterator[None]:
    """Turn the client's exceptions into :class:`HubError`, with a remedy and without the token.

    Args:
        action: what was attempted, for the message.
    """
    try:
        yield
    except UsageError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # not chained: a client's exception carries the request, and with it the token
        raise HubError(redact(f"{action} failed: {_explain(error)}")) from None


def redact(text: str) -> str:
    """Remove tokens from a text: the one in use, and anything that looks like one."""
    text = re.sub("hf_[A-Za-z0-9]{20,}", "***", text)
    for token in {get_token(), os.environ.get("HF_TOKEN")}:
        if token:
            text = text.replace(token, "***")
    return text


def _explain(error: Exception) -> str:
    known = {
        LocalTokenNotFoundError: "there is no token: set HF_TOKEN, or run 'hf auth login'",
        OfflineModeIsEnabled: "HF_HUB_OFFLINE is set: unset it, or load what the cache holds",
        GatedRepoError: "the repository's owner must grant access first",
        RepositoryNotFoundError: "there is no such repository, or it is private and the token does not reach it",
        RevisionNotFoundError: "the repository has no such revision: check --revision",
        RemoteEntryNotFoundError: "the repository lacks the file: it was not made by affnorm_zoo",
        LocalEntryNotFoundError: f"the file is not in the cache ({Path(constants.HF_HUB_CACHE)}) and the Hub cannot be "
        "asked: check the network, or HF_ENDPOINT",
        HFValidationError: "a repository is called ORG/NAME, of letters, digits, '-', '_' and '.'",
    }
    for kind, remedy in known.items():
        if isinstance(error, kind):
            return remedy
    text = " ".join(str(error).split())
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"{_BY_STATUS.get(status, f'the Hub answered {status}; try again later')} ({text[:300]})"
    if "xet-write-token" in text or "xet-read-token" in text:
        return f"the server has no Xet storage: set HF_HUB_DISABLE_XET=1 ({text[:200]})"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        detail = f"{type(error).__name__}: {text[:200]}"
        return f"no answer from {constants.ENDPOINT}: check the network and try again ({detail})"
    cause = f"; {error.__cause__}" if error.__cause__ else ""
    return f"{type(error).__name__}: {text[:300]}{cause}"
