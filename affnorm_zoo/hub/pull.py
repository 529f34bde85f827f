import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import CONFIG_NAME
from torch import nn

from affnorm_zoo.hub.client import OVERALL_SECONDS, hub_client, within
from affnorm_zoo.hub.errors import HubError, hub_errors
from affnorm_zoo.hub.release import GOLDEN_FILE, check_golden, load_folder
from affnorm_zoo.hub.remote_hashes import differing
from affnorm_zoo.models import MANIFEST_FILE
from affnorm_zoo.runs.files import sha256_of
from affnorm_zoo.runs.layout import WEIGHTS_FILE

_CHECKED = (CONFIG_NAME, WEIGHTS_FILE, GOLDEN_FILE)


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    timeout: float = OVERALL_SECONDS,
) -> Path:
    """Download a published model and verify it.

    Every file, also from the cache, is compared with the sha256 in the repository's manifest. New files are compared
    with the Hub's own record too. A bad file is downloaded once more. Only safetensors and JSON files are fetched.

    Args:
        repo_id: ``ORG/NAME``.
        revision: a commit, tag or branch; None: main. A commit or tag always gives the same files.
        token: of the Hub, for private repositories.
        cache_dir: by default the client's.
        timeout: seconds that it may take; a single request may be silent for a minute.

    Returns:
        The folder in the cache.

    Raises:
        HubError: the repository or revision is not there, was not made by affnorm_zoo, cannot be reached and is not
            in the cache, is too slow, or a file is not what was published.
    """
    return within(timeout, f"loading {repo_id}", lambda: _pull(repo_id, revision, token, cache_dir))


def _pull(repo_id: str, revision: str | None, token: str | None, cache_dir: Path | None) -> Path:
    with hub_client(token) as api, hub_errors(f"loading {repo_id}"):
        offline = constants.HF_HUB_OFFLINE
        if not offline and not _is_commit(revision):
            # asked first: without an answer the client would silently return an old version from the cache
            _check_revision(api, repo_id, revision)

        def fetch(name: str, at: str | None, force: bool = False) -> Path:
            path = hf_hub_download(repo_id, name, revision=at, token=token, cache_dir=cache_dir, force_download=force)
            return Path(path)

        def is_cached(name: str, at: str | None) -> bool:
            found = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=at)
            return isinstance(found, str)

        was_whole = _is_commit(revision) and all(is_cached(name, revision) for name in (MANIFEST_FILE, *_CHECKED))
        manifest_path = fetch(MANIFEST_FILE, revision)
        folder, commit = manifest_path.parent, manifest_path.parent.name
        if not offline and not was_whole and differing(api, repo_id, commit, {MANIFEST_FILE: manifest_path}):
            manifest_path = fetch(MANIFEST_FILE, commit, force=True)
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        for name in _CHECKED:
            expected = manifest["files"][name]["sha256"]
            if sha256_of(fetch(name, commit)) != expected:
                if offline:
                    raise HubError(f"{name} of {repo_id} is damaged in the cache: load it again with a network")
                if sha256_of(fetch(name, commit, force=True)) != expected:
                    raise HubError(f"{name} of {repo_id} is not what was published: sha256 differs from its manifest")
        if not offline and not was_whole:
            wrong = differing(api, repo_id, commit, {name: folder / name for name in _CHECKED})
            if wrong:
                raise HubError(f"{', '.join(wrong)} of {repo_id} differ from the Hub's own record: load again")
    return folder


def load(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    timeout: float = OVERALL_SECONDS,
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
    folder = pull(repo_id, revision=revision, token=token, cache_dir=cache_dir, timeout=timeout)
    if verify:
        check_golden(load_folder(folder), folder / GOLDEN_FILE)
    return load_folder(folder, **kwargs)


def _is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def _check_revision(api: HfApi, repo_id: str, revision: str | None) -> None:
    if api.model_info(repo_id, revision=revision).sha is None:
        raise HubError(f"{repo_id} has no commits yet: there is nothing to load")
