"""Objects put and read on their own: how clients hand over bytes before something refers to them.

The bytes of all projects share one store, so a digest alone opens nothing: an object is this project's only where it has put
the bytes, or refers to the object, directly or through a tree whose files were this project's when it was made. **This is the one
place where a digest that comes from outside is checked**: :func:`check_owned`, :func:`owned_size`, :func:`owned_tree`. Bytes that
only look like a tree open nothing (docs/design/authority.md).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator

from mainspring.errors import Corrupt, InvalidInput, NotFound
from mainspring.lineage.foundation import Foundation
from mainspring.operations import GIB, MIB, Download, Kind, Role, operation
from mainspring.records.events import EventKind
from mainspring.records.objects import ObjectRef
from mainspring.storage.sql import Reader
from mainspring.streams import BodyStream

MAX_UPLOAD = 5 * GIB
_PREFIX = "upload:"


class Uploads:
    """Bytes in and out of the object store, for this project."""

    room = "objects"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    @operation(role=Role.EDITOR, changes=True, kind=Kind.UPLOAD, max_body=MAX_UPLOAD, deadline_s=3600)
    def put(self, *, body: Iterable[bytes]) -> ObjectRef:
        """Store a stream of at most 5 GiB; returns its digest and size. Putting the same bytes again changes nothing.

        The object is kept until :meth:`expire_uploads`, longer where something refers to it. Raises TooLarge, StorageFull.
        """
        base = self._base
        with base.objects.writing() as writer:
            ref = writer.put(io.BufferedReader(BodyStream(body, limit=MAX_UPLOAD), 1 << 20))
            writer.flush()
            return self._record_upload(ref)

    @operation(role=Role.EDITOR, changes=True, max_body=64 * MIB)
    def create_tree(self, *, files: dict[str, ObjectRef]) -> ObjectRef:
        """Make a tree object of objects put before; kept like an upload. Raises InvalidInput for paths no tree may hold."""
        base = self._base
        check_owned(base, files.values(), place="files")
        with base.objects.writing() as writer:
            ref = writer.tree(files)
            writer.flush()
            return self._record_upload(ref, tree=True)

    def _record_upload(self, ref: ObjectRef, *, tree: bool = False) -> ObjectRef:
        base = self._base
        with base.ledger.decision() as decision:
            decision.tx.execute(
                "INSERT INTO uploads (project, digest, size, created_us) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (project, digest) DO UPDATE SET created_us = excluded.created_us",
                base.project, ref.digest, ref.size, time.time_ns() // 1000,
            )  # fmt: skip
            decision.refer(ref.digest, _PREFIX + ref.digest, tree=tree)
            return decision.done(ref)

    @operation(role=Role.VIEWER, kind=Kind.DOWNLOAD, deadline_s=3600)
    def get(self, digest: str) -> Download:
        """The bytes of an object that this project refers to; raises NotFound for every other digest."""
        size = owned_size(self._base, digest)
        return Download(chunks=self._base.objects.chunks(digest), size=size)

    @operation(role=Role.ADMIN, changes=True)
    def expire_uploads(self, *, older_than_s: float = 7 * 86400.0) -> int:
        """Stop keeping uploads older than this many seconds (of machine time); returns how many.

        What something else refers to stays; the rest goes with the next garbage collection.
        """
        if older_than_s < 0:
            raise InvalidInput("an age is not negative", value=older_than_s)
        base, limit = self._base, time.time_ns() // 1000 - int(older_than_s * 1e6)
        with base.ledger.decision() as decision:
            rows = decision.tx.all(
                "SELECT digest FROM uploads WHERE project = ? AND created_us <= ?", base.project, limit
            )
            for row in rows:
                decision.unrefer(_PREFIX + str(row["digest"]))
            decision.tx.execute(
                "DELETE FROM uploads WHERE project = ? AND created_us <= ?", base.project, limit
            )
            if rows:
                decision.event(
                    EventKind.UPLOADS_EXPIRED,
                    "objects:uploads",
                    {"count": len(rows), "older_than_s": older_than_s},
                )
            return decision.done(len(rows))


def check_owned(base: Foundation, refs: Iterable[ObjectRef], *, place: str) -> None:
    """Check that this project refers to all of these objects, with these sizes in bytes.

    Raises :class:`NotFound` for the first one it does not refer to, with the same answer for an unknown digest as for one of another
    project, so that the caller learns nothing about other projects; :class:`InvalidInput` for another size.
    """
    wanted = {ref.digest: ref.size for ref in refs}
    known = _read_sizes(base, list(wanted))
    for digest, size in wanted.items():
        if digest not in known:
            raise _not_found(digest, place)
        actual = known[digest]
        if actual is None:
            actual = base.objects.size(digest)
        if actual != size:
            raise InvalidInput(
                "the object has another size",
                value=size,
                place=f"{place}, {digest}",
                next_step=f"It has {actual} bytes.",
            )


def owned_size(base: Foundation, digest: str) -> int | None:
    """The size in bytes of an object that this project refers to, None where no upload recorded it. Raises :class:`NotFound`."""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise _not_found(digest, "objects")
    known = _read_sizes(base, [digest])
    if digest not in known:
        raise _not_found(digest, "objects")
    return known[digest]


def owned_tree(base: Foundation, digest: str, *, place: str) -> dict[str, ObjectRef]:
    """The files of a tree that this project may name: the tree is its own, and so is each file. Raises :class:`NotFound`.

    Anybody can put bytes that list the digests of others: such a tree is refused as if the files did not exist.
    """
    owned_size(base, digest)
    files = base.objects.tree(digest)
    with base.store.read() as tx:
        proven = tx.first(
            "SELECT 1 AS one FROM object_refs WHERE project = ? AND digest = ? AND tree = 1",
            base.project,
            digest,
        )
    if proven is None:
        check_owned(base, files.values(), place=place)
    return files


def _read_sizes(base: Foundation, digests: list[str]) -> dict[str, int | None]:
    """Those of ``digests`` that this project refers to, with their sizes where known."""
    sizes: dict[str, int | None] = {}
    with base.store.read() as tx:
        for start in range(0, len(digests), 500):  # engines limit how many values one statement binds
            part = digests[start : start + 500]
            marks = ", ".join("?" * len(part))
            # LEFT JOIN: an object may be referred to without an upload, and its size is not known here then.
            rows = tx.all(
                f"SELECT r.digest AS digest, MAX(u.size) AS size FROM object_refs r LEFT JOIN uploads u ON u.project = r.project AND u.digest = r.digest "
                f"WHERE r.project = ? AND r.digest IN ({marks}) GROUP BY r.digest",
                base.project, *part,
            )  # fmt: skip
            sizes |= {str(row["digest"]): None if row["size"] is None else int(row["size"]) for row in rows}
        rest = set(digests) - set(sizes)
        roots = _list_trees(tx, base.project) if rest else []
    for root in roots:
        for ref in _read_tree(base, root):
            if ref.digest in rest:
                sizes[ref.digest] = ref.size
                rest.discard(ref.digest)
        if not rest:
            break
    return sizes


def _not_found(digest: str, place: str) -> NotFound:
    return NotFound(
        "no such object in this project",
        value=digest,
        place=place,
        next_step="Put it first, or name one this project stores.",
    )


def _list_trees(tx: Reader, project: str) -> list[str]:
    """Trees whose files are this project's, marked so when they were made. Other bytes may look like a tree without being one."""
    rows = tx.all("SELECT DISTINCT digest FROM object_refs WHERE project = ? AND tree = 1", project)
    return [str(row["digest"]) for row in rows]


def _read_tree(base: Foundation, digest: str) -> Iterator[ObjectRef]:
    try:
        yield from base.objects.tree(digest).values()
    except (InvalidInput, NotFound, Corrupt):
        return  # it was damaged or collected: it opens nothing
