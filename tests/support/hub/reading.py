"""The routes of the loopback Hub that read a repository, and downloads from the second origin."""

import json
import re
from urllib.parse import parse_qs

from store import RefusalError, flipped, signature


class Reading:
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
            headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{file["lfs"]}"', "X-Linked-Size": str(file["size"]),
                       "Location": location}  # fmt: skip
            if key := self.store.cas.hashes.get(file["lfs"]):
                token = f"http://{self.headers['Host']}/api/models/{repo_id}/xet-read-token/{sha}"
                headers |= {"X-Xet-Hash": key, "Link": f'<{token}>; rel="xet-auth"'}
            self.send(302, b"", headers)
        else:
            data = file["data"]
            if self.command == "GET" and path == "manifest.json" and self.store.fault("manifest damaged"):
                data = data.replace(b'"bytes"', b'"bytez"', 1)
            self.send(200, data, {"X-Repo-Commit": sha, "ETag": f'"{file["oid"]}"'})

    def cdn(self, oid):
        if self.query.get("signature") != [signature(oid)]:
            raise RefusalError(403, "bad signature")
        data = flipped(self.store.objects[oid]) if self.store.fault("a byte flipped") else self.store.objects[oid]
        self.send(200, data, {"ETag": f'"{oid}"', "Accept-Ranges": "none"})
