"""Pack files: many blobs in one file of tens of megabytes.

Layout: ``MSPCK001``, the blobs one after another, a table (digest, kind, length, object size per blob), u32 count,
BLAKE3 of the table, ``MSPCKEND``. The table repeats the rows of the index, so that the index can be rebuilt from the packs.
"""

from __future__ import annotations

import struct

import blake3

from mainspring.errors import Corrupt
from mainspring.records.base import new_id
from mainspring.storage.objects.index import Entry

_MAGIC, _END = b"MSPCK001", b"MSPCKEND"
_ROW = struct.Struct("<32sBIQ")
_COUNT = struct.Struct("<I")
_HASH = 32
_TAIL = _COUNT.size + _HASH + len(_END)


class Pack:
    """A pack in memory, to which blobs are added. Its name (UUIDv7) holds the time at which it was begun."""

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

    def flag(self, digest: bytes, kind: int) -> None:
        """Change the kind of a blob that was added; possible since the table is written last."""
        if digest in self.entries:
            self.entries[digest] = self.entries[digest]._replace(kind=kind)

    def seal(self) -> bytes:
        """The whole file. ``size`` is its length afterwards."""
        table = b"".join(_ROW.pack(digest, e.kind, e.length, e.size) for digest, e in self.entries.items())
        self._parts += [table, _COUNT.pack(len(self.entries)), blake3.blake3(table).digest(), _END]
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
    """Size of a pack that holds exactly so many blobs, of ``length`` bytes in total; a larger pack holds others as well."""
    return len(_MAGIC) + length + blobs * _ROW.size + _TAIL


def read_table(name: str, data: bytes) -> dict[bytes, Entry]:
    """The table of the whole pack ``data``. Raises :class:`Corrupt` unless header, table and end are intact."""
    if not data.startswith(_MAGIC):
        raise _damaged(name, "its header is wrong")
    if not data.endswith(_END):
        raise _damaged(name, "its end is wrong, or it is cut off")
    return salvage_table(name, data)


def salvage_table(name: str, data: bytes) -> dict[bytes, Entry]:
    """The table of a pack whose header or end may be damaged. Raises :class:`Corrupt` if the table is."""
    if len(data) < len(_MAGIC) + _TAIL:
        raise _damaged(name, "it is cut off")
    tail = len(data) - _TAIL
    (count,) = _COUNT.unpack_from(data, tail)
    start = tail - count * _ROW.size
    if start < len(_MAGIC):
        raise _damaged(name, "its table is longer than the file")
    table = data[start:tail]
    if blake3.blake3(table).digest() != data[tail + _COUNT.size : -len(_END)]:
        raise _damaged(name, "its table has another digest")
    rows, offset = {}, len(_MAGIC)
    for digest, kind, length, size in _ROW.iter_unpack(table):
        rows[digest] = Entry(kind, name, offset, length, size)
        offset += length
    if offset != start:
        raise _damaged(name, "its table describes another number of bytes")
    return rows


def _damaged(name: str, why: str) -> Corrupt:
    return Corrupt(
        f"a pack is damaged: {why}", place=f"packs/{name}", next_step="Run 'mainspring fsck --repair'."
    )
