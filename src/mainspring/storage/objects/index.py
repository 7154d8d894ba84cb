"""Where each blob is stored. An index file is sorted and immutable; all of them together are the index.

Layout (little-endian): ``MSIDX001``, u32 length of the header, u32 rows, header JSON ``{"packs": [[name, size], ...]}``
padded to 8, the first 8 bytes of every digest as u64 (sorted), the rows (rest of the digest, kind, pack, offset,
length, size), BLAKE3 of all before. 56 bytes per blob; a look-up bisects the u64 column, about a microsecond.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import blake3

from mainspring.errors import Corrupt, MainspringError, NotFound
from mainspring.records.base import from_json, new_id, to_json
from mainspring.storage.objects.bytestore import ByteStore

RAW, RECIPE, TREE = 0, 1, 2
"""Kinds: the bytes themselves, or a recipe; TREE is a flag on either: the object lists others."""

_MAGIC = b"MSIDX001"
_HEAD = struct.Struct("<8sII")
_ROW = struct.Struct("<24sB3xIIIQ")
_CHECK = 32
_SMALL = 2048
_HASHED_ROWS = 65_536
_BAD = ".bad"
_MARK = re.compile(r"[0-9a-f]{64}\.bad")


class Entry(NamedTuple):
    """One blob: ``length`` bytes at ``offset`` of ``pack``. ``size`` is the size of the object, which differs for a recipe."""

    kind: int
    pack: str
    offset: int
    length: int
    size: int

    @property
    def is_recipe(self) -> bool:
        return bool(self.kind & RECIPE)

    @property
    def is_tree(self) -> bool:
        return bool(self.kind & TREE)


class IndexFile:
    """One index file in memory, verified."""

    def __init__(self, name: str, data: bytes) -> None:
        if (
            len(data) < _HEAD.size + _CHECK
            or blake3.blake3(memoryview(data)[:-_CHECK]).digest() != data[-_CHECK:]
        ):
            raise Corrupt(
                "an index file is damaged",
                place=f"index/{name}",
                next_step="Run 'mainspring fsck --repair': it is made again from the packs.",
            )
        magic, head, self.rows = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise Corrupt(
                "not an index file", place=f"index/{name}", next_step="Run 'mainspring fsck --repair'."
            )
        self.name = name
        raw: Any = from_json(data[_HEAD.size : _HEAD.size + head].rstrip(b" "))
        self.packs: dict[str, int] = {str(p): int(size) for p, size in raw["packs"]}
        self._names = list(self.packs)
        keys = _HEAD.size + head
        self._keys = array("Q")
        self._keys.frombytes(data[keys : keys + 8 * self.rows])
        if sys.byteorder == "big":
            self._keys.byteswap()
        self._data = data
        self._at = keys + 8 * self.rows

    def find(self, digest: bytes) -> Entry | None:
        key = int.from_bytes(digest[:8], "big")
        row = bisect_left(self._keys, key)
        while row < self.rows and self._keys[row] == key:
            rest, kind, pack, offset, length, size = _ROW.unpack_from(self._data, self._at + row * _ROW.size)
            if rest == digest[8:]:
                return Entry(kind, self._names[pack], offset, length, size)
            row += 1
        return None

    def __iter__(self) -> Iterator[tuple[bytes, Entry]]:
        names = self._names
        body = memoryview(self._data)[self._at : self._at + self.rows * _ROW.size]
        for key, (rest, kind, pack, offset, length, size) in zip(
            self._keys, _ROW.iter_unpack(body), strict=True
        ):
            yield key.to_bytes(8, "big") + rest, Entry(kind, names[pack], offset, length, size)


def dump_index(entries: dict[bytes, Entry], packs: dict[str, int]) -> bytes:
    """The stored form of an index file over ``entries``; ``packs`` gives the size of each pack they lie in."""
    used = sorted({entry.pack for entry in entries.values()})
    number = {name: i for i, name in enumerate(used)}
    head = to_json({"packs": [[name, packs[name]] for name in used]})
    head += b" " * (-(len(head) + _HEAD.size) % 8)
    keys = array("Q")
    rows = []
    for digest in sorted(entries):
        kind, pack, offset, length, size = entries[digest]
        keys.append(int.from_bytes(digest[:8], "big"))
        rows.append(_ROW.pack(digest[8:], kind, number[pack], offset, length, size))
    if sys.byteorder == "big":
        keys.byteswap()
    body = b"".join([_HEAD.pack(_MAGIC, len(head), len(entries)), head, keys.tobytes(), *rows])
    return body + blake3.blake3(body).digest()


class Index:
    """A snapshot of all index files. Immutable: a refresh makes a new one that shares the files already loaded.

    ``damaged`` are blobs that failed verification in a read (marked beside the index files): the next put of these bytes stores
    them again.
    """

    def __init__(self, files: Iterable[IndexFile] = (), *, damaged: frozenset[bytes] = frozenset()) -> None:
        self.files: dict[str, IndexFile] = {}
        self.damaged = damaged
        self._hashed: dict[bytes, Entry] = {}
        self._large: list[IndexFile] = []
        self._add(sorted(files, key=lambda f: f.rows))

    def extended(self, files: Iterable[IndexFile], *, damaged: frozenset[bytes]) -> Index:
        """A new index with more files, which shares the rows already loaded."""
        new = Index(damaged=damaged)
        new.files, new._hashed, new._large = dict(self.files), dict(self._hashed), list(self._large)
        new._add(files)
        return new

    def _add(self, files: Iterable[IndexFile]) -> None:
        for file in files:
            self.files[file.name] = file
            if file.rows <= _SMALL and len(self._hashed) + file.rows <= _HASHED_ROWS:
                hashed = self._hashed
                for digest, entry in file:
                    known = hashed.setdefault(digest, entry)
                    if known is not entry:
                        hashed[digest] = join_entries(known, entry)
            else:
                self._large.append(file)

    def find(self, digest: bytes) -> Entry | None:
        """The newest place of the blob. Its tree flag may be in another row: see :meth:`is_tree`."""
        entry = self._hashed.get(digest)
        for file in self._large:
            other = file.find(digest)
            if other is not None:
                entry = join_entries(entry, other)
        return entry

    def is_tree(self, digest: bytes) -> bool:
        """Whether these bytes were stored as a tree; an older row may hold them as a plain file."""
        hashed = self._hashed.get(digest)
        if hashed is not None and hashed.is_tree:
            return True
        return any(entry.is_tree for file in self._large if (entry := file.find(digest)) is not None)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files.values())

    @property
    def packs(self) -> dict[str, int]:
        return {name: size for file in self.files.values() for name, size in file.packs.items()}

    def __iter__(self) -> Iterator[tuple[bytes, Entry]]:
        """All rows; a digest may come more than once."""
        for file in self.files.values():
            yield from file


def join_entries(first: Entry | None, second: Entry) -> Entry:
    """Two rows of one digest as one: the place in the newer pack, the tree flag of either.

    The newer pack, since damaged bytes are stored again in a new pack (names of packs grow with time).
    """
    if first is None:
        return second
    newer = second if second.pack > first.pack else first
    kind = newer.kind | ((first.kind | second.kind) & TREE)
    return newer if kind == newer.kind else newer._replace(kind=kind)


def load_index(store: ByteStore, known: Index) -> Index:
    """The current index; files that ``known`` has are not read again."""
    for _ in range(8):
        keys = [key.removeprefix("index/") for key, _ in store.list("index/")]
        names = {name for name in keys if name.endswith(".idx")}
        damaged = frozenset(bytes.fromhex(name.removesuffix(_BAD)) for name in keys if is_mark(name))
        if names == known.files.keys() and damaged == known.damaged:
            return known
        try:
            new = [IndexFile(name, store.get(f"index/{name}")) for name in sorted(names - known.files.keys())]
        except NotFound:  # merged into another file since the listing: list again
            continue
        if names >= known.files.keys():
            return known.extended(new, damaged=damaged)
        return Index([*(f for n, f in known.files.items() if n in names), *new], damaged=damaged)
    raise MainspringError("the index changes faster than it can be read", next_step="Try again.")


def mark_key(digest: bytes) -> str:
    """The key that marks the stored bytes of this blob as damaged. Beside the index files, so that one listing returns both."""
    return f"index/{digest.hex()}{_BAD}"


def is_mark(name: str) -> bool:
    """Whether a name below ``index/`` is such a mark."""
    return name.endswith(_BAD) and _MARK.fullmatch(name) is not None


def new_index_name() -> str:
    return f"{new_id()}.idx"
