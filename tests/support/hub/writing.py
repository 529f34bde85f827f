"""The routes of the loopback Hub that change a repository, and uploads by LFS."""

import base64
import hashlib
import json

from store import LFS_FROM, RefusalError, file_of, pointer_to, signature


class Writing:
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
                other = {**repo["commits"][head], "other.txt": file_of(b"faster")}
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
                    files[value["path"]] = file_of(base64.b64decode(value["content"]))
                elif line["key"] == "lfsFile":
                    if not self.store.holds(value["oid"], value["size"]):
                        raise RefusalError(400, f"LFS object {value['oid']} is missing")
                    files[value["path"]] = pointer_to(value["oid"], value["size"])
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            if any(".." in path or path.startswith("/") for path in files):
                raise RefusalError(400, "a path leaves the repository")
            sha = self.store.commit(repo, revision, files, head)
        if self.store.fault("commit answer lost"):
            self.cut()
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
