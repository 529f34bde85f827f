"""What the loopback Hub holds: repositories, objects, tokens, and the faults that tests have asked for."""

import hashlib
import json
import threading

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
        self.requests = []  # (origin, method, path, has_token)
        self.faults = {}  # name -> how often

    def fault(self, name):
        with self.lock:
            left = self.faults.get(name, 0)
            self.faults[name] = max(left - 1, 0)
            return left > 0

    def commit(self, repo, branch, files, parent=None):
        content = json.dumps([parent, len(repo["order"]), {p: f["oid"] for p, f in files.items()}], sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        repo["commits"][sha] = files
        repo["order"].append(sha)
        repo["branches"][branch] = sha
        return sha


def file_of(data, lfs):
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"size": len(data), "oid": git, "data": None if lfs else data, "lfs": lfs}


class RefusalError(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


def signature(oid):
    return hashlib.sha256(f"secret {oid}".encode()).hexdigest()[:16]
