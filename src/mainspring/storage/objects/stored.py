"""Stored objects: the index, the packs and every way to read them. Implemented once, above any :class:`ByteStore`."""

from __future__ import annotations

import contextlib
import io
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import blake3

from mainspring.errors import Corrupt, InvalidInput, MainspringError, NotFound
from mainspring.records.base import new_id
from mainspring.records.objects import ObjectRef, ObjectStats
from mainspring.storage.materialise import SafeFolder, check_target
from mainspring.storage.objects.bytestore import ByteStore
from mainspring.storage.objects.chunking import Recipe, RepositoryFormat, load_entries
from mainspring.storage.objects.index import Entry, Index, IndexFile, load_index, mark_key
from mainspring.storage.objects.pack import pack_key
from mainspring.storage.objects.pins import Pins
from mainspring.storage.objects.reader import ObjectReader
from mainspring.storage.objects.trees import load_tree

if TYPE_CHECKING:
    from mainspring.storage.objects.owner import Owner

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_BYTES = 8 << 20


class Unflushed(Protocol):
    """A writer whose objects may be read before it has ended: the first read flushes it."""

    def holds(self, raw: bytes) -> bool: ...
    def flush(self) -> None: ...


class StoredObjects:
    """What is stored: the index and the packs, read and verified. Writers, gc, fsck and repair work on it
    (:class:`mainspring.storage.objects.store.Objects` puts them together)."""

    def __init__(
        self,
        store: ByteStore,
        *,
        form: RepositoryFormat,
        pins: Pins | None = None,
        references: Callable[[], Iterable[str]] | None = None,
        owner: Owner | None = None,
        freeing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """``pins=None`` makes it read-only. ``references`` lists every digest that the database refers to, ``owner`` is that database.
        ``freeing`` returns a context for operations that free space.
        """
        self.store = store
        self.form = form
        self._pins = pins
        self._references = references
        self._owner = owner
        self._freeing = freeing
        self._index = Index()
        self._loaded = False
        self._lock = threading.Lock()
        self._writers: weakref.WeakSet[Unflushed] = weakref.WeakSet()

    @property
    def owner(self) -> str | None:
        """The id of the database that the store belongs to."""
        return self._owner.id if self._owner is not None else None

    @property
    def pins(self) -> Pins:
        if self._pins is None:
            raise InvalidInput(
                "this object store was opened for reading only", next_step="Open it with its leases to write."
            )
        return self._pins

    # ---- reading

    def has(self, digest: str) -> bool:
        """Whether the object is stored now (not whether its bytes are intact: see :meth:`fsck`)."""
        self.refresh()  # another process may have collected it
        try:
            self.locate(_parse_digest(digest))
        except NotFound:
            return False
        return True

    def size(self, digest: str) -> int:
        """Size of the object in bytes. Raises :class:`NotFound`."""
        return self.locate(_parse_digest(digest)).size

    def read(self, digest: str) -> bytes:
        """The whole object. Raises :class:`NotFound`, or :class:`Corrupt` naming the digest."""
        parts = list(self.chunks(digest))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open(self, digest: str) -> BinaryIO:
        """A seekable, buffered reader; every chunk is verified as it is read."""
        raw = _parse_digest(digest)
        entry = self.locate(raw)
        if not entry.is_recipe:
            return io.BytesIO(self.blob(raw))
        return cast(
            "BinaryIO", io.BufferedReader(ObjectReader(self, self.recipe(raw)), buffer_size=256 << 10)
        )

    def chunks(self, digest: str) -> Iterator[bytes]:
        """The object in pieces of bounded size, in order; the whole digest is checked at the end as well."""
        raw = _parse_digest(digest)
        entry = self.locate(raw)
        if not entry.is_recipe:
            yield self.blob(raw)
            return
        recipe = self.recipe(raw)
        whole, size = blake3.blake3(), 0
        for _, chunk in self.blobs([d for d, _ in recipe.entries]):
            whole.update(chunk)
            size += len(chunk)
            yield chunk
        if whole.digest() != raw or size != recipe.size:
            self.note_damage(raw)
            raise _damaged_object(raw, "its chunks are intact, but not their order or number")

    def tree(self, digest: str) -> dict[str, ObjectRef]:
        """The entries of a tree object, checked as a whole (paths, collisions, sizes, canonical form)."""
        return load_tree(self.read(digest), place=f"tree {digest}")

    def materialise(
        self, tree_digest: str, target: Path, *, internal: bool = False, durable: bool = False
    ) -> None:
        """Write a tree's files below ``target``. A new target appears whole or not at all; in an existing one files
        of the same path are replaced, others stay.

        Refused before the first write: a bad tree, an entry that is missing or of another size, a target inside
        ``.git``, ``.mainspring`` and the like (``internal=True``: the target is the product's own).
        ``durable`` syncs every file.
        """
        entries = self.tree(tree_digest)
        for path, ref in entries.items():
            if self.locate(_parse_digest(ref.digest)).size != ref.size:
                raise Corrupt(
                    "a tree disagrees with the size of its file",
                    value=path,
                    place=f"tree {tree_digest}",
                    next_step="Run 'mainspring fsck'.",
                )
        if not internal:
            target = check_target(target)
        if target.exists():
            self._write_tree(entries, target, fresh=False, durable=durable)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.tmp-{new_id()}")
        staging.mkdir(mode=0o755)
        try:
            self._write_tree(entries, staging, fresh=True, durable=durable)
            staging.rename(target)
        except BaseException:
            import shutil

            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _write_tree(self, entries: dict[str, ObjectRef], target: Path, *, fresh: bool, durable: bool) -> None:
        paths: dict[bytes, list[str]] = {}
        chunked: list[str] = []
        for path, ref in entries.items():
            raw = _parse_digest(ref.digest)
            if self.locate(raw).is_recipe:
                chunked.append(path)
            else:
                paths.setdefault(raw, []).append(path)
        with SafeFolder(target, fresh=fresh, durable=durable) as folder:
            for raw, blob in self.blobs(self._sort_by_place(paths)):
                for path in paths[raw]:
                    folder.write(path, (blob,))
            for path in chunked:
                folder.write(path, self.chunks(entries[path].digest))

    # ---- maintenance

    def stats(self) -> ObjectStats:
        """Counts of rows, packs and index files, and the stored bytes, as they are now."""
        self.refresh()
        packs = dict(self.store.list("packs/"))
        return ObjectStats(
            objects=self._index.rows,
            packs=len(packs),
            stored_bytes=sum(packs.values()),
            index_files=len(self._index.files),
        )

    # ---- for the other modules of this package

    @property
    def index(self) -> Index:
        if not self._loaded:
            self.refresh()
        return self._index

    def refresh(self) -> bool:
        """Load new index files and drop removed ones; returns whether anything changed."""
        with self._lock:
            before = self._index
            self._index = load_index(self.store, before)
            self._loaded = True
            return self._index is not before

    def adopt(self, file: IndexFile, stored: Iterable[bytes] = ()) -> None:
        """Add an index file that this process has just written; ``stored`` are blobs with new places in it, which are intact now."""
        healed = self._index.damaged.intersection(stored)
        if healed:
            self.store.delete([mark_key(raw) for raw in healed])
        with self._lock:
            self._index = self._index.extended([file], damaged=self._index.damaged - healed)

    def note_damage(self, raw: bytes) -> None:
        """Mark a blob whose bytes failed verification, so that the next put of these bytes stores them again."""
        if raw in self.index.damaged:
            return
        with self._lock:
            self._index = self._index.extended([], damaged=self._index.damaged | {raw})
        if self._pins is not None:
            # The mark is for other processes; this one has it in memory
            with contextlib.suppress(MainspringError):
                self.store.put(mark_key(raw), b"")

    def locate(self, raw: bytes) -> Entry:
        """Where an object is stored. Flushes this store's writers and loads new index files before it raises :class:`NotFound`."""
        entry = self.index.find(raw)
        if entry is None:
            for writer in tuple(self._writers):
                if writer.holds(raw):
                    writer.flush()
            entry = self._index.find(raw)
        if entry is None and self.refresh():
            entry = self._index.find(raw)
        if entry is None:
            raise NotFound(
                "there is no such object",
                value=raw.hex(),
                place=f"the {self.store.name} object store",
                next_step="Pull it, or run 'mainspring fsck'.",
            )
        return entry

    def blob(self, raw: bytes) -> bytes:
        """The verified bytes of one unchunked blob."""
        for _, data in self.blobs([raw]):
            return data
        raise AssertionError  # blobs() yields or raises

    def blobs(self, digests: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """The blobs in the order of ``digests``, each verified. Neighbours in a pack are read together, up to 8 MiB."""
        run: list[tuple[bytes, Entry]] = []
        length = 0
        for raw in digests:
            entry = self.locate(raw)
            if run:
                last = run[-1][1]
                if (
                    entry.pack != last.pack
                    or entry.offset != last.offset + last.length
                    or length + entry.length > _RUN_BYTES
                ):
                    yield from self._fetch(run)
                    run, length = [], 0
            run.append((raw, entry))
            length += entry.length
        if run:
            yield from self._fetch(run)

    def recipe(self, raw: bytes) -> Recipe:
        """The list of chunks of a chunked object, down to level 1."""
        recipe = self.recipe_as_stored(raw)
        if recipe.level == 1:
            return recipe
        body = b"".join(data for _, data in self.blobs([d for d, _ in recipe.entries]))
        return Recipe(digest=raw, size=recipe.size, level=1, entries=load_entries(body, raw))

    def recipe_as_stored(self, raw: bytes) -> Recipe:
        """The list of chunks as it is stored, possibly of level 2."""
        return self._load_recipe(raw, self._read_at(raw, self.locate(raw)))

    def stored_blob(self, raw: bytes, entry: Entry) -> bytes:
        """The bytes at one place, verified: an object's own bytes, or a recipe."""
        data = self.store.get(pack_key(entry.pack), offset=entry.offset, length=entry.length)
        if entry.is_recipe:
            self._load_recipe(raw, data)
            return data
        return self._verify(raw, data)

    def use_index(self, index: Index) -> None:
        """Replace the index: fsck and repair read it again from the store."""
        with self._lock:
            self._index, self._loaded = index, True

    def _sort_by_place(self, digests: Iterable[bytes]) -> list[bytes]:
        def place(raw: bytes) -> tuple[str, int]:
            entry = self.locate(raw)
            return entry.pack, entry.offset

        return sorted(digests, key=place)

    def _fetch(self, run: list[tuple[bytes, Entry]]) -> Iterator[tuple[bytes, bytes]]:
        first, last = run[0][1], run[-1][1]
        try:
            data = self.store.get(
                pack_key(first.pack), offset=first.offset, length=last.offset + last.length - first.offset
            )
        except NotFound:  # gc has rewritten the pack since our index was read
            for raw, entry in run:
                yield raw, self._verify(raw, self._read_at(raw, entry))
            return
        if len(run) == 1:
            yield run[0][0], self._verify(run[0][0], data, first)
            return
        view = memoryview(data)
        for raw, entry in run:
            at = entry.offset - first.offset
            yield raw, self._verify(raw, bytes(view[at : at + entry.length]), entry)

    def _verify(self, raw: bytes, data: bytes, read_at: Entry | None = None) -> bytes:
        if blake3.blake3(data).digest() == raw:
            return data
        if read_at is not None and self.refresh():  # another process may have stored it again
            current = self.locate(raw)
            if (current.pack, current.offset) != (read_at.pack, read_at.offset):
                return self._verify(raw, self._read_at(raw, current))
        self.note_damage(raw)
        raise _damaged_object(raw, "its stored bytes have another digest")

    def _load_recipe(self, raw: bytes, data: bytes) -> Recipe:
        try:
            return Recipe.load(data, raw)
        except Corrupt:
            self.note_damage(raw)
            raise

    def _read_at(self, raw: bytes, entry: Entry) -> bytes:
        try:
            return self.store.get(pack_key(entry.pack), offset=entry.offset, length=entry.length)
        except NotFound:
            self.refresh()
        current = self.locate(raw)
        try:
            return self.store.get(pack_key(current.pack), offset=current.offset, length=current.length)
        except NotFound:
            self.note_damage(raw)
            raise _damaged_object(raw, f"pack {current.pack} is missing") from None


def _parse_digest(digest: str) -> bytes:
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            "not a digest", value=digest, next_step="A digest is 64 lower-case hexadecimal digits (BLAKE3)."
        )
    return bytes.fromhex(digest)


def _damaged_object(raw: bytes, why: str) -> MainspringError:
    return Corrupt(
        f"an object is damaged: {why}",
        value=raw.hex(),
        place="the object store",
        next_step="Run 'mainspring fsck --read-data', then restore it from another copy.",
    )
