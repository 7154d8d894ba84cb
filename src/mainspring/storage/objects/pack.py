"""Pack files: many blobs in one file of tens of megabytes.

Layout: ``MSPCK001``, the blobs one after another, a table (digest, kind, length, object size per blob), u32 count,
BLAKE3 of the table, ``MSPCKEND``. The table repeats what the index says, so an index can be made again from packs.
"""

from __future__ import annotations

import struct

import blake3

from mainspring.records.base import new_id
from mainspring.storage.objects.index import Entry

_MAGIC, _END = b"MSPCK001", b"MSPCKEND"
_ROW = struct.Struct("<32sBIQ")


class Pack:
    """A pack being filled, in memory. Its name says when it was begun (UUIDv7)."""

    def __init__(self) -> None:
        self.name = f"{new_id()}.pack"
        self.entries: dict[bytes, Entry] = {}
        self.size = len(_MAGIC)
        self._parts: list[bytes] = [_MAGIC]

    def add(self, digest: bytes, blob: bytes, *, kind: int, size: int) -> Entry:
        entry = self.entries[digest] = Entry(kind, self.name, self.size, len(blob), size)
        self._parts.append(blob)
        self.size += len(blob)
        return entry

    def seal(self) -> bytes:
        """The whole file. ``size`` is its length afterwards."""
        table = b"".join(_ROW.pack(digest, e.kind, e.length, e.size) for digest, e in self.entries.items())
        self._parts += [table, struct.pack("<I", len(self.entries)), blake3.blake3(table).digest(), _END]
        data = b"".join(self._parts)
        self._parts.clear()
        self.size = len(data)
        return data


def pack_key(name: str) -> str:
    return f"packs/{name}"


def begun_s(name: str) -> float:
    """When a pack was begun, seconds since the epoch, from its UUIDv7 name; 0 for a name that is not ours."""
    try:
        return int(name[:8] + name[9:13], 16) / 1000
    except ValueError:
        return 0.0


def pack_size(blobs: int, length: int) -> int:
    """Size of a pack of so many blobs with ``length`` bytes together: a larger one holds something else as well."""
    return len(_MAGIC) + length + blobs * _ROW.size + 4 + 32 + len(_END)
