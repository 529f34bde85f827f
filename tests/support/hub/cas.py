"""The content-addressed side of the loopback Hub: xorbs, which hold chunks, and shards, which make files of chunks.

Source:
    The Xet protocol, https://huggingface.co/docs/xet: formats of xorb and shard, and the reconstruction of a file.
"""

import struct

_HASH, _ENTRY = 32, 48  # bytes of a hash, and of every entry of a shard
_HAS_VERIFICATION, _HAS_METADATA = 1 << 31, 1 << 30
_FOOTER = b"XETBLOB"


class Cas:
    def __init__(self):
        self.xorbs = {}  # hash -> (bytes, where its chunks begin)
        self.files = {}  # hash -> [(xorb, first chunk, one past the last, bytes)]
        self.hashes = {}  # sha256 -> hash

    def add_xorb(self, key, data):
        self.xorbs[key] = (data, chunk_starts(data))

    def add_shard(self, data):
        """Take in the files of a shard, whose xorbs must be there."""
        for key, sha256, terms in files_of(data):
            if missing := [xorb for xorb, *_ in terms if xorb not in self.xorbs]:
                raise ValueError(f"xorbs are missing: {missing}")
            self.files[key] = terms
            self.hashes[sha256] = key

    def reconstruction(self, key, address):
        """How a client puts a file together; ``address`` makes a URL of a xorb's hash."""
        fetch = {}
        for xorb, first, end, _ in self.files[key]:
            starts = self.xorbs[xorb][1]
            fetch.setdefault(xorb, []).append({
                "range": {"start": first, "end": end}, "url": address(xorb),
                "url_range": {"start": starts[first], "end": starts[end] - 1},
            })  # fmt: skip
        terms = [
            {"hash": xorb, "unpacked_length": size, "range": {"start": first, "end": end}}
            for xorb, first, end, size in self.files[key]
        ]
        return {"offset_into_first_range": 0, "terms": terms, "fetch_info": fetch}


def chunk_starts(data):
    """Offsets of a xorb's chunks, and where the last one ends."""
    starts, at = [], 0
    while at < len(data) and data[at : at + len(_FOOTER)] != _FOOTER:
        starts.append(at)
        at += 8 + int.from_bytes(data[at + 1 : at + 4], "little")
    return [*starts, at]


def files_of(shard):
    """(hash, sha256, terms) of every file in a shard."""
    at = _ENTRY  # behind the header
    while (key := shard[at : at + _HASH]) != b"\xff" * _HASH:
        flags, count = struct.unpack_from("<II", shard, at + _HASH)
        at += _ENTRY
        terms = []
        for _ in range(count):
            _, size, first, end = struct.unpack_from("<IIII", shard, at + _HASH)
            terms.append((hex_of(shard[at : at + _HASH]), first, end, size))
            at += _ENTRY
        at += count * _ENTRY if flags & _HAS_VERIFICATION else 0
        sha256 = None
        if flags & _HAS_METADATA:
            sha256 = hex_of(shard[at : at + _HASH])
            at += _ENTRY
        yield hex_of(key), sha256, terms


def hex_of(digest):
    """A hash as the protocol writes it: four numbers of eight bytes, little-endian."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))
