import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from affnorm_zoo.hub.client import OVERALL_SECONDS, hub_client, within
from affnorm_zoo.hub.errors import HubError, hub_errors
from affnorm_zoo.hub.release import build_release, list_files
from affnorm_zoo.hub.remote_hashes import differing
from affnorm_zoo.models import MANIFEST_FILE

_KEEP = {".gitattributes"}  # the Hub's own


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published release: the commit of ``repo_id``, None after a dry run, and the sizes of its files in bytes."""

    repo_id: str
    commit: str | None
    files: dict[str, int]


def publish(
    run: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    seeds: Sequence[Path] = (),
    timeout: float = OVERALL_SECONDS,
) -> Published:
    """Publish a finished run as one commit of a model repository, and read it back.

    Everything is built and checked before the first request. After a failure, another call completes the push. Files
    that are already there make no second commit.

    Args:
        run: a finished run folder.
        repo_id: ``ORG/NAME``; made if it does not exist.
        private: create a new repository as private.
        revision: the branch.
        tag: a name for the commit.
        token: of the Hub; by default ``HF_TOKEN`` or that of ``hf auth login``.
        dry_run: build and check only.
        seeds: further runs of the same config with other seeds, for the card's mean and standard deviation.
        timeout: seconds that the exchange with the Hub may take; any one request may be silent for a minute.

    Raises:
        UsageError: a run is not finished, or ``seeds`` differ in more than their seed.
        HubError: the Hub refuses, cannot be reached or is too slow, or holds other content afterwards.
    """
    folder = build_release(run, seeds, load_as=f"hf-hub:{repo_id}")
    files = list_files(folder)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    commit = None
    if not dry_run:
        commit = within(
            timeout,
            f"pushing to {repo_id}",
            lambda: _push(files, repo_id, private=private, revision=revision, tag=tag, token=token),
        )
    return Published(repo_id=repo_id, commit=commit, files=sizes)


def _push(
    files: dict[str, Path], repo_id: str, *, private: bool, revision: str, tag: str | None, token: str | None
) -> str:
    """Make the commit, read it back and name it."""
    with hub_client(token) as api:
        with hub_errors(f"looking for {repo_id}"):
            _check_namespace(api, repo_id)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision != "main":
                api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = _commit(api, repo_id, revision, files)
        with hub_errors(f"reading {repo_id} back"):
            wrong = differing(api, repo_id, commit, files)
            if wrong:
                raise HubError(
                    f"{repo_id} at {commit[:8]} differs from what was sent in {', '.join(wrong)}: push again"
                )
            if tag is not None:
                _tag(api, repo_id, tag, commit)
    return commit


def _check_namespace(api: HfApi, repo_id: str) -> None:
    """Check the namespace first: the Hub would refuse a wrong one only at the commit, after the upload."""
    namespace, slash, _ = repo_id.partition("/")
    me = api.whoami()
    own = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    if not slash or namespace not in own:
        raise HubError(f"{repo_id} is not in a namespace of this token, which are {', '.join(own)}")
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError("the token can only read: make one with the write role at the Hub's settings, and set HF_TOKEN")


def _commit(api: HfApi, repo_id: str, revision: str, files: dict[str, Path]) -> str:
    """The commit that gives the repository these files; the head if it already has them."""
    with hub_errors(f"reading {repo_id}"):
        head = _head(api, repo_id, revision)
        if head and not differing(api, repo_id, head, files):
            return head
        there = set(api.list_repo_files(repo_id, revision=head)) if head else set()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in sorted(there - set(files) - _KEEP)),
    ]
    manifest = json.loads(files[MANIFEST_FILE].read_text(encoding="utf-8"))
    try:
        with hub_errors(f"pushing to {repo_id}"):
            info = api.create_commit(
                repo_id,
                operations,
                commit_message=f"{manifest['architecture']}, by affnorm_zoo {manifest['affnorm-zoo']}",
                revision=revision,
                parent_commit=head,
            )
            return info.oid
    except HubError:
        # the answer may have been lost although the commit was made
        with hub_errors(f"reading {repo_id}"):
            now = _head(api, repo_id, revision)
            if now and now != head and not differing(api, repo_id, now, files):
                return now
        raise


def _head(api: HfApi, repo_id: str, revision: str) -> str | None:
    try:
        return api.model_info(repo_id, revision=revision).sha
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError:
        # not chained: the client's exception carries the request, and with it the token
        raise HubError(f"{repo_id} was made, but this token cannot read it") from None


def _tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Tag the commit; the tag must not name another one."""
    api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    found = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if found.get(tag) != commit:
        raise HubError(
            f"the tag {tag} of {repo_id} already names another version, {found.get(tag, '')[:8]}: choose another"
        )
