"""Compare local files with the Hub's own record of them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from affnorm_zoo.runs.files import sha256_of


def differing(api: HfApi, repo_id: str, commit: str, files: Mapping[str, Path]) -> list[str]:
    """Names of files that a commit lacks, or whose content differs, by the Hub's own record.

    That record is a sha256 for files in its large-file storage, and git's blob id for the others.
    """
    infos = api.get_paths_info(repo_id, list(files), revision=commit)
    recorded = {info.path: info for info in infos if isinstance(info, RepoFile)}
    return [name for name, path in files.items() if name not in recorded or not _matches(path, recorded[name])]


def _matches(path: Path, info: RepoFile) -> bool:
    if info.lfs is not None:
        return info.lfs.sha256 == sha256_of(path)
    data = path.read_bytes()
    return info.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
