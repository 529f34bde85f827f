"""A small Hub on the loopback address: repositories, LFS, tokens with roles, a second origin for files, and faults.

Every commit is one assignment under a lock, so that a reader sees all of it or nothing. Started as a script it prints
its address and serves until its input is closed; what tests ask of it beside the Hub's own API lies below ``/test/``.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from store import LFS_FROM, USERS, RefusalError, Store, file_of, signature


class Handler(BaseHTTPRequestHandler):
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
        self.body = self.rfile.read(length) if length else b""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self.read_chunks()
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        origin = self.headers.get("Host", "").partition(":")[0]
        if not url.path.startswith("/test/"):
            self.store.requests.append((origin, method, url.path, bool(token)))
        if url.path.startswith("/api/") and self.store.fault("silence"):
            time.sleep(5)
        try:
            if token and token not in USERS:
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

    def send(self, status, content=b"", headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

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
            self.store.commit(repo, "main", {".gitattributes": file_of(b"*.safetensors filter=lfs\n", None)})
        self.send(200, {"url": self.address(repo_id), "name": repo_id})

    def address(self, repo_id):
        return f"http://{self.headers['Host']}/{repo_id}"

    def validate(self):
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            self.send(400, {"errors": [{"message": "the card has no metadata"}], "warnings": []})
        else:
            self.send(200, {"errors": [], "warnings": []})

    # writing

    def preupload(self, repo_id, revision):
        repo = self.repo(repo_id, write=True)
        here = repo["commits"][self.sha(repo, revision)]
        answer = []
        for file in json.loads(self.body)["files"]:
            is_lfs = file["path"].endswith((".safetensors", ".png")) or file["size"] > LFS_FROM * 1000
            known = here.get(file["path"])
            oid = (known["lfs"] or known["oid"]) if known else None
            mode = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            answer.append({**mode, **({"oid": oid} if oid else {})})
        self.send(200, {"files": answer})

    def lfs_batch(self, repo_id):
        self.repo(repo_id, write=True)
        if self.store.fault("lfs batch refused"):
            raise RefusalError(503, "try later")
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.store.objects:
                host = f"localhost:{self.server.server_address[1]}"
                upload = {"href": f"http://{host}/lfs/{item['oid']}?signature={signature(item['oid'])}"}
                verify = {"href": f"{self.address(repo_id)}/lfs-verify", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.query.get("signature") != [signature(oid)]:
            raise RefusalError(403, "bad signature")
        if self.store.fault("upload cut"):
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusalError(400, "sha256 does not match")
        self.store.objects[oid] = self.body
        self.send(200)

    def lfs_verify(self, repo_id):
        self.repo(repo_id, write=True)
        item = json.loads(self.body)
        if len(self.store.objects.get(item["oid"], b"")) != item["size"]:
            raise RefusalError(404, "no such object")
        self.send(200, {})

    def commit(self, repo_id, revision):
        repo = self.repo(repo_id, write=True)
        if self.store.fault("commit refused"):
            raise RefusalError(503, "try later")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if self.store.fault("somebody was faster"):
            with self.store.lock:
                head = repo["branches"][revision]
                other = {**repo["commits"][head], "other.txt": file_of(b"faster", None)}
                self.store.commit(repo, revision, other, head)
        with self.store.lock:
            head = repo["branches"].get(revision)
            if head is None:
                raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if header.get("parentCommit") not in (None, head):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo["commits"][head])
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = file_of(base64.b64decode(value["content"]), None)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.store.objects:
                        raise RefusalError(400, f"LFS object {value['oid']} is missing")
                    files[value["path"]] = file_of(self.store.objects[value["oid"]], value["oid"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            if any(".." in path or path.startswith("/") for path in files):
                raise RefusalError(400, "a path leaves the repository")
            sha = self.store.commit(repo, revision, files, head)
        if self.store.fault("commit answer lost"):
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.send(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.address(repo_id)}/commit/{sha}"})

    def make_ref(self, repo_id, kind, name):
        repo, asked = self.repo(repo_id, write=True), json.loads(self.body or b"{}")
        with self.store.lock:
            refs = repo["branches" if kind == "branch" else "tags"]
            key = name if kind == "branch" else asked["tag"]
            if key in refs:
                raise RefusalError(409, "Reference already exists")
            refs[key] = self.sha(repo, asked.get("startingPoint", "main") if kind == "branch" else name)
        self.send(200, {})

    # reading

    def info(self, repo_id, revision="main"):
        repo = self.repo(repo_id)
        sha = self.sha(repo, revision)
        files = [{"rfilename": path} for path in sorted(repo["commits"][sha])]
        self.send(200, {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo["private"], "siblings": files,
                        "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def list_models(self):
        author, tags = self.query.get("author", [""])[0], self.query.get("filter", [])
        found = []
        for repo_id, repo in self.store.repos.items():
            card = repo["commits"][repo["branches"]["main"]].get("README.md")
            own = re.findall(r"^- (\S+)$", card["data"].decode().split("---")[1], re.M) if card else []
            visible = not repo["private"] or (self.user and author in (self.user["name"], *self.user["orgs"]))
            if repo_id.partition("/")[0] == author and set(tags) <= set(own) and visible:
                found.append({"id": repo_id, "modelId": repo_id, "tags": own, "private": repo["private"]})
        self.send(200, found)

    def entries(self, repo, sha, paths=None):
        for path, file in sorted(repo["commits"][sha].items()):
            if paths is None or path in paths:
                entry = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
                if file["lfs"]:
                    entry["lfs"] = {"oid": file["lfs"], "size": file["size"], "pointerSize": 130}
                yield entry

    def paths_info(self, repo_id, revision):
        repo = self.repo(repo_id)
        is_wrong = self.store.fault("another record")
        asked = self.body.decode()
        paths = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        entries = list(self.entries(repo, self.sha(repo, revision), set(paths)))
        for entry in entries if is_wrong else ():
            entry["oid"] = "0" * 40
            entry.get("lfs", {})["oid"] = "0" * 64
        self.send(200, entries)

    def tree(self, repo_id, revision):
        repo = self.repo(repo_id)
        self.send(200, list(self.entries(repo, self.sha(repo, revision))))

    def refs(self, repo_id):
        repo = self.repo(repo_id)
        kinds = {"branches": "heads", "tags": "tags"}
        self.send(200, {
            kind: [{"name": n, "ref": f"refs/{word}/{n}", "targetCommit": sha} for n, sha in repo[kind].items()]
            for kind, word in kinds.items()
        } | {"converts": []})  # fmt: skip

    def resolve(self, repo_id, revision, path):
        repo = self.repo(repo_id)
        sha = self.sha(repo, revision)
        file = repo["commits"][sha].get(path)
        if file is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        if file["lfs"]:
            location = (
                f"http://localhost:{self.server.server_address[1]}/cdn/{file['lfs']}?signature={signature(file['lfs'])}"
            )
            self.send(302, b"", {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{file["lfs"]}"',
                                 "X-Linked-Size": str(file["size"]), "Location": location})  # fmt: skip
        else:
            data = file["data"]
            if self.command == "GET" and path == "manifest.json" and self.store.fault("manifest damaged"):
                data = data.replace(b'"bytes"', b'"bytez"', 1)
            self.send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{file["oid"]}"'})

    def cdn(self, oid):
        if self.query.get("signature") != [signature(oid)]:
            raise RefusalError(403, "bad signature")
        data = self.store.objects[oid]
        if self.store.fault("a byte flipped"):
            data = data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]
        self.send(200, data, {"ETag": f'"{oid}"', "Accept-Ranges": "none"})

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
        self.send(200, {"repos": repos, "requests": self.store.requests})


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
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REV}/(.+)", "resolve"),
    (r"(?:GET|HEAD) /cdn/(\w+)", "cdn"),
]


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
