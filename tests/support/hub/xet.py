"""The routes of the loopback Hub for Xet, the transport that the client prefers."""

import re
import time

from store import RefusalError, flipped, signature

# settings of a client that uses it
XET = {
    "HF_HUB_DISABLE_XET": "0",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms",
}


class Xet:
    def xet_token(self, repo_id, kind, revision):
        self.repo(repo_id, write=kind == "write")
        if self.store.fault("no xet"):
            raise RefusalError(404, "no route", "EntryNotFound")
        url, expiry = f"http://localhost:{self.server.server_address[1]}/cas", int(time.time()) + 3600
        token = signature(kind)
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
        self.send(200, {"casUrl": url, "accessToken": token, "exp": expiry}, headers)

    def may(self, kind):
        if self.headers.get("Authorization") != f"Bearer {signature(kind)}":
            raise RefusalError(401, "not a token of this storage")

    def xorb_put(self, key):
        self.may("write")
        self.store.cas.add_xorb(key, self.body)
        self.send(200, {"was_inserted": True})

    def shard_put(self, version):
        self.may("write")
        self.store.cas.add_shard(self.body)
        self.send(200, b'{"type":"result"}\n' if version == "2" else {"result": 1})

    def reconstruction(self, key):
        self.may("read")
        host = f"http://localhost:{self.server.server_address[1]}"
        if key not in self.store.cas.files:
            raise RefusalError(404, "no such file")
        found = self.store.cas.reconstruction(key, lambda xorb: f"{host}/xorbs/{xorb}?signature={signature(xorb)}")
        self.send(200, found)

    def xorb_get(self, key):
        if self.query.get("signature") != [signature(key)]:
            raise RefusalError(403, "bad signature")
        data, (first, last) = self.store.cas.xorbs[key][0], re.findall(r"\d+", self.headers["Range"])
        part = data[int(first) : int(last) + 1]
        part = flipped(part) if self.store.fault("a byte flipped") else part
        self.send(206, part, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})
