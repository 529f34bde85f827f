"""What the loopback Hub holds: repositories, objects, tokens, and the faults that tests have asked for."""

import hashlib
import json
import threading

from cas import Cas

USERS = {
    "hf_writer": {"name": "writer", "role": "write", "orgs": ["zoo"]},
    "hf_reader": {"name": "reader", "role": "read", "orgs": ["zoo"]},
    "hf_stranger": {"name": "stranger", "role": "write", "orgs": []},
}
LFS_FROM = 1000  # bytes


class Store:
    def __init__(self):
        self.lock = threading.Lock()
        self.repos = {}  # id -> {"private", "commits": {sha: files}, "order": [sha], "branches", "tags"}
        self.objects = {}  # sha256 -> bytes
        self.cas = Cas()
        self.requests = []  # (origin, method, path, has_token)
        self.faults = {}  # name -> how often

    def fault(self, name):
        with self.lock:
            left = self.faults.get(name, 0)
            self.faults[name] = max(left - 1, 0)
            return left > 0

    def holds(self, oid, size):
        """Whether an object is there, sent on either way."""
        if key := self.cas.hashes.get(oid):
            return sum(length for *_, length in self.cas.files[key]) == size
        return len(self.objects.get(oid, b"")) == size

    def commit(self, repo, branch, files, parent=None):
        content = json.dumps([parent, len(repo["order"]), {p: f["oid"] for p, f in files.items()}], sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        repo["commits"][sha] = files
        repo["order"].append(sha)
        repo["branches"][branch] = sha
        return sha


def file_of(data):
    return {"size": len(data), "oid": git_sha1(data), "data": data, "lfs": None}


def pointer_to(oid, size):
    """A file that git holds only a pointer to."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    return {"size": size, "oid": git_sha1(pointer), "data": None, "lfs": oid}


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def flipped(data):
    """The data with one bit changed."""
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


class RefusalError(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


def signature(oid):
    return hashlib.sha256(f"secret {oid}".encode()).hexdigest()[:16]
