"""Adding objects: hash, cut, look up, pack; then write packs, then the index, and only then may references be committed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import blake3

from mainspring.errors import InvalidInput, MainspringError, NotFound, Unavailable
from mainspring.records.objects import ObjectRef
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.objects.chunking import MAX_RECIPE_BYTES, Cutting, Recipe, dump_entries
from mainspring.storage.objects.index import (
    RAW,
    RECIPE,
    TREE,
    Entry,
    IndexFile,
    dump_index,
    join_entries,
    new_index_name,
)
from mainspring.storage.objects.pack import Pack, pack_key
from mainspring.storage.objects.trees import dump_tree

if TYPE_CHECKING:
    from mainspring.storage.objects.stored import StoredObjects

declare(
    "objects.add.looked_up", "objects.add.packed", "objects.flush.begin", "objects.flush.packs", "objects.flush.index",
    "objects.merge.written", "objects.merge.deleted",
)  # fmt: skip

_IN_FLIGHT = 2
_MERGE_AT = 32
_MERGE_ROWS = 4096
_MERGE_SPREAD = 16


class ObjectWriter:
    """Made by :meth:`Objects.writing`. Belongs to one thread. Memory: a few packs (32 MiB each)."""

    def __init__(self, objects: StoredObjects, *, check: Callable[[], None]) -> None:
        self._objects = objects
        self._store = objects.store
        self._form = objects.form
        self._check = check
        self._pack = Pack()
        self._pending: dict[bytes, Entry] = {}
        self._packs: dict[str, int] = {}
        self._uploads: deque[Future[None]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def put(self, source: bytes | Path | BinaryIO, *, table: bool = False) -> ObjectRef:
        """Store bytes, a plain file or a stream. ``table``: cut finely (our own Parquet, lists).

        The source is read once, and the digest is of the bytes that are stored, also if a file changes meanwhile.
        Raises :class:`InvalidInput` for a path that is not a plain file, :class:`StorageFull`.
        """
        cutting = self._form.table if table else self._form.opaque
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self._put_bytes(bytes(source), cutting)
        if isinstance(source, Path):
            return self._put_file(source, cutting)
        return self._put_stream(source, cutting)

    def tree(self, entries: Mapping[str, ObjectRef]) -> ObjectRef:
        """Store a tree: the list of its files. All entries must be stored already. Raises :class:`InvalidInput`."""
        data = dump_tree(entries)
        for path, ref in entries.items():
            raw = bytes.fromhex(ref.digest)
            entry = self._find(raw)
            if entry is None:
                try:
                    entry = self._objects.locate(raw)
                except NotFound:
                    raise NotFound(
                        "a tree lists an object that is not stored",
                        value=ref.digest,
                        place=path,
                        next_step="Put the file first.",
                    ) from None
            if entry.size != ref.size:
                raise InvalidInput(
                    "a tree states another size than the object has",
                    value=ref.size,
                    place=path,
                    next_step=f"It has {entry.size} bytes.",
                )
        ref = self._put_bytes(data, self._form.table)
        self._flag_tree(bytes.fromhex(ref.digest))
        return ref

    def flush(self) -> None:
        """Everything put so far is durable and readable when this returns: packs first, then the index."""
        if not self._pending:
            return
        failpoint("objects.flush.begin")
        self._check()
        if self._pack.entries:
            self._store_pack(last=True)
        while self._uploads:
            self._uploads.popleft().result()
        failpoint("objects.flush.packs")
        name = new_index_name()
        index = self._objects.index.packs
        sizes = {
            entry.pack: self._packs.get(entry.pack) or index[entry.pack] for entry in self._pending.values()
        }
        data = dump_index(self._pending, sizes)
        self._store.put(f"index/{name}", data)
        failpoint("objects.flush.index")
        self._objects.adopt(
            IndexFile(name, data), [raw for raw, entry in self._pending.items() if entry.pack in self._packs]
        )
        self._pending = {}
        self._packs = {}
        self._merge_index()

    def holds(self, raw: bytes) -> bool:
        """Whether this object is put and not yet flushed."""
        return raw in self._pending

    def abandon(self) -> None:
        """Discard what is not flushed. Its packs are unreferenced; they are deleted now if possible, else by gc."""
        for upload in self._uploads:
            with contextlib.suppress(Exception):
                upload.result()
        self._uploads.clear()
        with contextlib.suppress(MainspringError):
            self._store.delete([pack_key(name) for name in self._packs])
        self._pending, self._packs, self._pack = {}, {}, Pack()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    # ---- adding

    def _put_bytes(self, data: bytes, cutting: Cutting) -> ObjectRef:
        raw = blake3.blake3(data).digest()
        ref = ObjectRef(digest=raw.hex(), size=len(data))
        known = self._find(raw)
        if known is None or (known.is_recipe and self._objects.index.damaged):
            if len(data) <= cutting.smallest:
                self._add(raw, data, kind=RAW, size=len(data))
            else:
                chunks = [self._put_chunk(bytes(part)) for part in cutting.cut(data)]
                if known is None:
                    self._add_chunks(raw, chunks, len(data))
        return ref

    def _put_file(self, path: Path, cutting: Cutting) -> ObjectRef:
        try:
            # NONBLOCK: opening a FIFO must not block before its type is known. NOFOLLOW: links are refused.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("there is no such file", value=str(path), next_step="Check the path.") from None
        except OSError as error:
            if path.is_symlink() or path.is_socket():
                raise _not_plain(path) from None
            raise Unavailable(
                f"cannot read the file: {error.strerror}", value=str(path), next_step="Check its permissions."
            ) from error
        with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - the descriptor is what was checked
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _not_plain(path)
            if status.st_size <= cutting.smallest:
                data = file.read()
                if len(data) <= cutting.smallest:
                    return self._put_bytes(data, cutting)
                file.seek(0)  # it has grown since
            return self._put_stream(file, cutting)

    def _put_stream(self, stream: BinaryIO, cutting: Cutting) -> ObjectRef:
        whole = blake3.blake3()
        chunks: list[tuple[bytes, int]] = []
        size = 0
        for part in cutting.cut_stream(stream):
            whole.update(part)
            chunks.append(self._put_chunk(part))
            size += len(part)
        raw = whole.digest()
        if self._find(raw) is None:
            self._add_chunks(raw, chunks or [self._put_chunk(b"")], size)
        return ObjectRef(digest=raw.hex(), size=size)

    def _put_chunk(self, part: bytes | memoryview) -> tuple[bytes, int]:
        raw = blake3.blake3(part).digest()
        if self._find(raw) is None:
            self._add(raw, bytes(part), kind=RAW, size=len(part))
        return raw, len(part)

    def _add_chunks(self, raw: bytes, chunks: list[tuple[bytes, int]], size: int) -> None:
        if len(chunks) == 1 and chunks[0][0] == raw:  # one chunk is the object itself
            return
        entries, level = tuple(chunks), 1
        body = dump_entries(entries)
        if len(body) > MAX_RECIPE_BYTES:
            entries, level = tuple(self._put_chunk(bytes(part)) for part in self._form.table.cut(body)), 2
        blob = Recipe(digest=raw, size=size, level=level, entries=entries).dump()
        self._add(raw, blob, kind=RECIPE, size=size)

    def _find(self, raw: bytes) -> Entry | None:
        entry = self._pending.get(raw)
        # A damaged blob has a row but no intact bytes: it is stored again
        if entry is None and raw not in self._objects.index.damaged:
            entry = self._objects.index.find(raw)
        failpoint("objects.add.looked_up")
        return entry

    def _add(self, raw: bytes, blob: bytes, *, kind: int, size: int) -> None:
        if self._pack.entries and self._pack.size + len(blob) > self._form.pack_bytes:
            self._store_pack()
        self._pending[raw] = self._pack.add(raw, blob, kind=kind, size=size)
        failpoint("objects.add.packed")

    def _flag_tree(self, raw: bytes) -> None:
        """Flag the object as a tree in the index, for gc. One that was stored as plain bytes before gets a second row."""
        if raw in self._pending:
            entry = self._pending[raw]
        elif not self._objects.index.is_tree(raw):
            entry = self._objects.locate(raw)
        else:
            return
        self._pending[raw] = entry._replace(kind=entry.kind | TREE)
        self._pack.flag(raw, entry.kind | TREE)

    def _store_pack(self, *, last: bool = False) -> None:
        """Close the pack and store it: in a thread while the next one fills, or directly if it is the last one."""
        pack, self._pack = self._pack, Pack()
        data = pack.seal()
        self._packs[pack.name] = pack.size
        if last and not self._uploads:  # most transactions store one small pack, which needs no thread
            self._store.put(pack_key(pack.name), data)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="mainspring-pack")
        while len(self._uploads) >= _IN_FLIGHT:
            self._uploads.popleft().result()
        self._uploads.append(self._pool.submit(self._store.put, pack_key(pack.name), data))

    def _merge_index(self) -> None:
        """Merge small index files when there are many. The merged file is stored before its parts are deleted."""
        # Each process has its own limit, so that several writers do not merge at the same time.
        limit = _MERGE_AT + os.getpid() % _MERGE_SPREAD
        if len(self._objects.index.files) <= limit:
            return
        self._objects.refresh()  # another writer may have merged them
        files = self._objects.index.files
        if len(files) <= limit:
            return
        small = max(_MERGE_ROWS, self._objects.index.rows // 4)
        merged = [file for file in files.values() if file.rows < small]
        if len(merged) < _MERGE_AT // 2:
            return
        entries: dict[bytes, Entry] = {}
        packs: dict[str, int] = {}
        for file in merged:
            packs |= file.packs
            for raw, entry in file:
                entries[raw] = join_entries(entries.get(raw), entry)
        self._check()
        self._store.put(f"index/{new_index_name()}", dump_index(entries, packs))
        failpoint("objects.merge.written")
        self._store.delete([f"index/{file.name}" for file in merged])
        failpoint("objects.merge.deleted")
        self._objects.refresh()


def _not_plain(path: Path) -> InvalidInput:
    return InvalidInput(
        "not a plain file",
        value=str(path),
        next_step="Links, pipes, sockets and devices are not followed; give the file itself.",
    )
