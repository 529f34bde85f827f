"""A small Hub on the loopback address: repositories, LFS, Xet, tokens with roles, a second origin for files, faults.

Every commit is one assignment under a lock, so that a reader sees all of it or nothing. Started as a script it prints
its address and serves until its input is closed; what tests ask of it beside the Hub's own API lies below ``/test/``.
"""

import json
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from reading import Reading
from store import USERS, RefusalError, Store, file_of
from writing import Writing
from xet import Xet


class Handler(Reading, Writing, Xet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.dispatch("HEAD")

    def do_GET(self):
        self.dispatch("GET")

    def do_POST(self):
        self.dispatch("POST")

    def do_PUT(self):
        self.dispatch("PUT")

    def dispatch(self, method):
        length = int(self.headers.get("Content-Length") or 0)
        url = urlsplit(self.path)
        for fault, pattern in CUTS.items():
            if re.fullmatch(pattern, f"{method} {url.path}") and self.store.fault(fault):
                self.rfile.read(random.randrange(max(length, 1)))
                self.cut()
                return
        self.body = self.rfile.read(length) if length else b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self.read_chunks()
        self.query = parse_qs(url.query)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        origin = self.headers.get("Host", "").partition(":")[0]
        if not url.path.startswith("/test/"):
            self.store.requests.append((origin, method, url.path, token in USERS))
        if url.path.startswith("/api/") and self.store.fault("silence"):
            time.sleep(5)
        try:
            is_cas = url.path.startswith("/cas/")  # which has tokens of its own
            if token and token not in USERS and not is_cas:
                raise RefusalError(401, "Invalid credentials in Authorization header")
            self.user = USERS.get(token)
            if url.path.startswith("/api/") and self.store.fault("too many requests"):
                raise RefusalError(429, "We had to rate limit you")
            for pattern, name in ROUTES:
                match = re.fullmatch(pattern, f"{method} {url.path}")
                if match:
                    getattr(self, name)(*(unquote(part) for part in match.groups()))
                    return
            raise RefusalError(404, f"no route for {method} {url.path}", "EntryNotFound")
        except RefusalError as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, {"error": str(refusal)}, headers)

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def cut(self):
        """End the connection without an answer."""
        self.close_connection = True
        self.connection.shutdown(2)

    def send(self, status, content=b"", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        is_slow = self.headers["Host"].startswith("localhost") and self.store.fault("a trickle")
        step = 1 if is_slow else max(len(data), 1)
        for at in range(0, len(data), step):
            self.wfile.write(data[at : at + step])
            time.sleep(0.2 if is_slow else 0)

    # who and what

    def repo(self, repo_id, *, write=False):
        repo = self.store.repos.get(repo_id)
        namespace = repo_id.partition("/")[0]
        owns = self.user is not None and namespace in (self.user["name"], *self.user["orgs"])
        if repo is None or (repo["private"] and not owns):
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        if write and (not owns or self.user["role"] != "write"):
            raise RefusalError(403, "You don't have the rights to do this")
        return repo

    def sha(self, repo, revision):
        sha = repo["branches"].get(revision) or repo["tags"].get(revision)
        sha = sha or (revision if revision in repo["commits"] else None)
        if sha is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def whoami(self):
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": "write"} for name in self.user["orgs"]]
        access = {"accessToken": {"displayName": "test", "role": self.user["role"]}}
        self.send(200, {"type": "user", "name": self.user["name"], "fullname": "", "orgs": orgs, "auth": access})

    def create(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user['name']}/{asked['name']}"
        if repo_id in self.store.repos:
            self.send(409, {"error": "exists", "url": self.address(repo_id)})
            return
        if self.user["role"] != "write" or repo_id.partition("/")[0] not in (self.user["name"], *self.user["orgs"]):
            raise RefusalError(403, "You don't have the rights to create a model under this namespace")
        with self.store.lock:
            private = asked.get("visibility") == "private" or asked.get("private", False)
            repo = {"private": private, "commits": {}, "order": [], "branches": {}, "tags": {}}
            self.store.repos[repo_id] = repo
            self.store.commit(repo, "main", {".gitattributes": file_of(b"*.safetensors filter=lfs\n")})
        self.send(200, {"url": self.address(repo_id), "name": repo_id})

    def address(self, repo_id):
        return f"http://{self.headers['Host']}/{repo_id}"

    def validate(self):
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            self.send(400, {"errors": [{"message": "the card has no metadata"}], "warnings": []})
        else:
            self.send(200, {"errors": [], "warnings": []})

    # what tests ask

    def ask(self, what):
        asked = json.loads(self.body or b"{}")
        if what == "faults":
            self.store.faults = asked
        elif what == "reset":
            self.store.__init__()
        repos = {
            name: {"order": repo["order"], "branches": repo["branches"], "tags": repo["tags"],
                   "files": {sha: sorted(files) for sha, files in repo["commits"].items()}}
            for name, repo in self.store.repos.items()
        }  # fmt: skip
        self.send(200, {"repos": repos, "requests": self.store.requests, "faults": self.store.faults})


NAME, REV = r"([^/]+/[^/]+)", r"([^/]+)"
ROUTES = [
    (r"(?:POST) /test/(\w+)", "ask"),
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{NAME}/preupload/{REV}", "preupload"),
    (rf"POST /api/models/{NAME}/commit/{REV}", "commit"),
    (rf"POST /api/models/{NAME}/(branch|tag)/{REV}", "make_ref"),
    (rf"POST /api/models/{NAME}/paths-info/{REV}", "paths_info"),
    (rf"GET /api/models/{NAME}/tree/{REV}", "tree"),
    (rf"GET /api/models/{NAME}/refs", "refs"),
    (r"GET /api/models", "list_models"),
    (rf"GET /api/models/{NAME}/revision/{REV}", "info"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (rf"POST /{NAME}/lfs-verify", "lfs_verify"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (rf"GET /api/models/{NAME}/xet-(write|read)-token/{REV}", "xet_token"),
    (r"POST /cas/v1/xorbs/default/(\w+)", "xorb_put"),
    (r"POST /cas/v(1|2)/shards", "shard_put"),
    (r"GET /cas/v1/reconstructions/(\w+)", "reconstruction"),
    (r"GET /xorbs/(\w+)", "xorb_get"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REV}/(.+)", "resolve"),
    (r"(?:GET|HEAD) /cdn/(\w+)", "cdn"),
]
# requests whose body is cut at any byte, by the fault's name
CUTS = {
    "upload cut": r"PUT /lfs/\w+|POST /cas/v1/xorbs/default/\w+",
    "commit cut": rf"POST /api/models/{NAME}/commit/{REV}",
}


def main():
    Handler.store = Store()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
