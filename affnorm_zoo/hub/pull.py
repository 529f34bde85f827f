import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download
from torch import nn

from affnorm_zoo.hub.client import hub_client
from affnorm_zoo.hub.errors import HubError, hub_errors
from affnorm_zoo.hub.release import GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE, check_golden, load_folder
from affnorm_zoo.training.run_folder import sha256_of

_NEEDED = ("config.json", WEIGHTS_FILE)


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: Path | None = None) -> Path:
    """Download a published model, and see that it is what was published.

    Every file is compared with the sha256 in the repository's manifest, from the cache too; a bad one is downloaded
    once more. Nothing but safetensors, JSON and the card is fetched.

    Args:
        repo_id: ``ORG/NAME``.
        revision: a commit, tag or branch; None: main. A commit or tag is the same for ever.
        token: of the Hub, for private repositories.
        cache_dir: by default the client's.

    Returns:
        The folder in the cache.

    Raises:
        HubError: the repository or revision is not there, was not made by affnorm_zoo, cannot be reached and is not
            in the cache, or a file is not what was published.
    """
    with hub_client(token) as api, hub_errors(f"loading {repo_id}"):

        def fetch(name: str, at: str | None, force: bool = False) -> Path:
            path = hf_hub_download(repo_id, name, revision=at, token=token, cache_dir=cache_dir, force_download=force)
            return Path(path)

        if not constants.HF_HUB_OFFLINE and not _is_commit(revision):
            # asked first: without an answer the client would give the cache's old version in silence
            _check_revision(api, repo_id, revision)
        path = fetch(MANIFEST_FILE, revision)
        folder, commit = path.parent, path.parent.name
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name in (*_NEEDED, GOLDEN_FILE):
            expected = manifest["files"][name]["sha256"]
            path = fetch(name, commit)
            if sha256_of(path) != expected:
                if constants.HF_HUB_OFFLINE:
                    raise HubError(f"{name} of {repo_id} is damaged in the cache: load it again with a network")
                path = fetch(name, commit, force=True)
                if sha256_of(path) != expected:
                    raise HubError(f"{name} of {repo_id} is not what was published: sha256 differs from its manifest")
    return folder


def load(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    verify: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a published model with its weights, checked byte by byte; arguments as for :func:`pull`.

    Args:
        verify: whether to compare the model's outputs with the published ones as well.
        kwargs: further arguments of :func:`timm.create_model`.

    Raises:
        HubError: as :func:`pull`, or an output differs.
    """
    folder = pull(repo_id, revision=revision, token=token, cache_dir=cache_dir)
    if verify:
        check_golden(load_folder(folder), folder / GOLDEN_FILE)
    return load_folder(folder, **kwargs)


def _is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def _check_revision(api: HfApi, repo_id: str, revision: str | None) -> None:
    if api.model_info(repo_id, revision=revision).sha is None:
        raise HubError(f"{repo_id} has no version yet")
