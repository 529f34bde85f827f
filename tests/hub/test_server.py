"""The loopback Hub itself: it refuses what the real one refuses, and shows whole commits only."""

import base64
import hashlib
import json
import threading
import urllib.error
import urllib.request

import pytest


@pytest.fixture
def send(hub):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def request(method, path, data=b"", token="hf_writer"):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = urllib.request.Request(f"{hub.url}{path}", data=data or None, method=method, headers=headers)
        try:
            with opener.open(asked, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return request


@pytest.fixture
def made(send, repo):
    namespace, name = repo.split("/")
    status, _ = send("POST", "/api/repos/create", json.dumps({"name": name, "organization": namespace}).encode())
    assert status == 200
    return repo


def commit(send, repo, *lines, parent=None):
    header = {"key": "header", "value": {"summary": "x", "description": "", "parentCommit": parent}}
    body = "\n".join(json.dumps(line) for line in (header, *lines)).encode()
    return send("POST", f"/api/models/{repo}/commit/main", body)


def file(path, data):
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}}


def sign(oid):
    return hashlib.sha256(f"secret {oid}".encode()).hexdigest()[:16]


def test_an_object_must_be_what_its_name_says(send):
    oid = hashlib.sha256(b"right").hexdigest()
    assert send("PUT", f"/lfs/{oid}?signature={sign(oid)}", b"wrong", token=None)[0] == 400
    assert send("PUT", f"/lfs/{oid}?signature=0", b"right", token=None)[0] == 403
    assert send("PUT", f"/lfs/{oid}?signature={sign(oid)}", b"right", token=None)[0] == 200
    assert send("GET", f"/cdn/{oid}?signature={sign(oid)}", token=None) == (200, b"right")
    assert send("GET", f"/cdn/{oid}?signature=0", token=None)[0] == 403


def test_a_commit_needs_its_objects_and_stays_inside(send, hub, made):
    missing = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    assert commit(send, made, missing)[0] == 400
    assert commit(send, made, file("../../etc/passwd", b"x"))[0] == 400
    assert commit(send, made, file("/etc/passwd", b"x"))[0] == 400
    assert hub.versions(made) == []


def test_a_stale_parent_and_a_reader_are_refused(send, hub, made):
    assert commit(send, made, file("a", b"1"))[0] == 200
    assert commit(send, made, file("a", b"2"), parent="0" * 40)[0] == 412
    body = json.dumps({"key": "header", "value": {"summary": "x"}}).encode()
    assert send("POST", f"/api/models/{made}/commit/main", body, token="hf_reader")[0] == 403
    assert send("POST", f"/api/models/{made}/commit/main", body, token="hf_forged")[0] == 401
    assert len(hub.versions(made)) == 1


def test_readers_see_whole_commits(send, made):
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            entries = json.loads(send("GET", f"/api/models/{made}/tree/main")[1])
            seen.add(tuple(entry["oid"] for entry in entries if entry["path"] != ".gitattributes"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        content = str(number).encode()
        assert commit(send, made, *(file(f"{name}.txt", content) for name in "abcd"))[0] == 200
    done.set()
    reader.join()
    assert all(len(set(oids)) <= 1 and len(oids) in (0, 4) for oids in seen)
    assert len(seen) > 1
