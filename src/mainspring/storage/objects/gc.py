"""Garbage collection: mark what the roots reach, remove the rest, rewrite packs that are mostly unused.

Order: new packs, then one new index, then the old index files go, then the old packs. A crash in between leaves
duplicates or unreferenced bytes, and the next run completes the work (SAFETY O03).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mainspring.errors import Corrupt, InvalidInput, NotFound, StorageFull, TooLarge
from mainspring.records.objects import GcReport
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.objects.index import TREE, Entry, dump_index, join_entries, new_index_name
from mainspring.storage.objects.pack import Pack, begun_s, pack_key, pack_size

if TYPE_CHECKING:
    from mainspring.storage.objects.stored import StoredObjects

declare(
    "objects.gc.marked", "objects.gc.packs", "objects.gc.index", "objects.gc.old_index", "objects.gc.deleted"
)

_SMALL_PACK = 4 << 20
_MANY_SMALL = 16


@dataclass
class Reached:
    """The blobs that the roots reach, by raw digest, and the references that could not be followed."""

    live: set[bytes] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)
    """Digest of an absent object → the object or reference that names it."""
    corrupt: dict[str, str] = field(default_factory=dict)
    wrong_size: dict[str, str] = field(default_factory=dict)


def mark(objects: StoredObjects, roots: Iterable[str]) -> Reached:
    """Follow trees and recipes from ``roots``. Damage never raises: it is recorded, and marking goes on (SAFETY O18)."""
    reached = Reached()
    pending: list[tuple[bytes, str, int | None]] = [
        (bytes.fromhex(root), "reference", None) for root in roots
    ]
    while pending:
        raw, origin, size = pending.pop()
        entry = objects.index.find(raw)
        if entry is None:
            reached.missing[raw.hex()] = origin
            continue
        if size is not None and entry.size != size:
            reached.wrong_size[raw.hex()] = origin
        if raw in reached.live:
            continue
        reached.live.add(raw)
        try:
            pending += [(inner, raw.hex(), length) for inner, length in _list_references(objects, raw, entry)]
        except (Corrupt, NotFound, InvalidInput, TooLarge) as error:
            reached.corrupt[raw.hex()] = str(error)
    return reached


def _list_references(objects: StoredObjects, raw: bytes, entry: Entry) -> list[tuple[bytes, int]]:
    inner_blobs: list[tuple[bytes, int]] = []
    if entry.is_recipe:
        recipe = objects.recipe_as_stored(raw)
        inner_blobs += recipe.entries
        if recipe.level > 1 and all(objects.index.find(inner) for inner, _ in recipe.entries):
            inner_blobs += objects.recipe(raw).entries
    if objects.index.is_tree(raw) and all(objects.index.find(inner) for inner, _ in inner_blobs):
        inner_blobs += [(bytes.fromhex(ref.digest), ref.size) for ref in objects.tree(raw.hex()).values()]
    return inner_blobs


@dataclass
class _Plan:
    keep: dict[bytes, Entry]
    """Rows that stay as they are."""
    move: dict[bytes, Entry]
    """Live blobs in packs that will be rewritten."""
    drop_packs: list[str]
    dead_objects: int
    dead_bytes: int


def collect(
    objects: StoredObjects,
    roots: Iterable[str],
    *,
    dry_run: bool,
    grace_s: float,
    min_live: float,
    check: Callable[[], None],
) -> GcReport:
    """See :meth:`Objects.gc`. ``check`` raises when the exclusive hold is lost."""
    objects.refresh()
    old_files = [f"index/{name}" for name in objects.index.files]
    reached = mark(objects, roots)
    failpoint("objects.gc.marked")
    sizes = {key.removeprefix("packs/"): size for key, size in objects.store.list("packs/")}
    plan = _plan(objects, reached, sizes, young_after=time.time() - grace_s, min_live=min_live)
    corrupt = dict(reached.corrupt)
    if not dry_run and (plan.dead_objects or plan.move or plan.drop_packs or len(old_files) > 1):
        try:
            _apply(objects, plan, sizes, old_files, corrupt, check)
        except StorageFull:
            if not plan.move:
                raise
            # No room for copying the live blobs of sparse packs: remove the packs without any, which frees space.
            plan = _plan(objects, reached, sizes, young_after=time.time() - grace_s, min_live=0.0)
            _apply(objects, plan, sizes, old_files, corrupt, check)
    return GcReport(
        dry_run=dry_run,
        objects_removed=plan.dead_objects,
        bytes_removed=plan.dead_bytes,
        packs_removed=len(plan.drop_packs),
        packs_rewritten=len({entry.pack for entry in plan.move.values()}),
        objects_kept=len(plan.keep) + len(plan.move),
        bytes_kept=sum(entry.length for entry in (*plan.keep.values(), *plan.move.values())),
        missing=tuple(sorted(reached.missing)),
        corrupt=tuple(sorted(corrupt)),
    )


def _plan(
    objects: StoredObjects, reached: Reached, sizes: dict[str, int], *, young_after: float, min_live: float
) -> _Plan:
    rows: dict[bytes, Entry] = {}
    for raw, entry in objects.index:
        if entry.pack in sizes and entry.offset + entry.length <= sizes[entry.pack]:
            rows[raw] = join_entries(rows.get(raw), entry)  # of several copies one place is kept
        else:
            reached.missing.update({raw.hex(): entry.pack} if raw in reached.live else {})
    for raw in rows.keys() & reached.live:
        reached.missing.pop(raw.hex(), None)
    young = {name for name in sizes if begun_s(name) > young_after}
    live_bytes, live_blobs = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
    for raw, entry in rows.items():
        if raw in reached.live:
            live_bytes[entry.pack] += entry.length
            live_blobs[entry.pack] += 1
    old = [name for name in sizes if name not in young]
    small = {name for name in old if sizes[name] < _SMALL_PACK and live_blobs[name]}
    sparse = {
        name
        for name in old
        if live_blobs[name] and pack_size(live_blobs[name], live_bytes[name]) < min_live * sizes[name]
    }
    if len(small) >= _MANY_SMALL and min_live > 0:
        sparse |= small
    keep = {
        raw: e for raw, e in rows.items() if e.pack in young or (raw in reached.live and e.pack not in sparse)
    }
    move = {raw: e for raw, e in rows.items() if raw in reached.live and e.pack in sparse}
    dead = [e for raw, e in rows.items() if raw not in keep and raw not in move]
    empty = [name for name in old if not live_blobs[name]]
    return _Plan(keep, move, empty + sorted(sparse), len(dead), sum(e.length for e in dead))


def _apply(
    objects: StoredObjects,
    plan: _Plan,
    sizes: dict[str, int],
    old_files: list[str],
    corrupt: dict[str, str],
    check: Callable[[], None],
) -> None:
    store = objects.store
    rows = dict(plan.keep)
    before, sizes = sizes, dict(sizes)
    try:
        blocked = _rewrite_packs(objects, plan.move, rows, sizes, corrupt)
        failpoint("objects.gc.packs")
        # Checked before each step that others see: without the exclusive hold, writers may rely on what would be removed.
        check()
        if rows:
            store.put(f"index/{new_index_name()}", dump_index(rows, sizes))
    except StorageFull:
        store.delete([pack_key(name) for name in sizes.keys() - before.keys()])
        raise
    failpoint("objects.gc.index")
    check()
    store.delete(old_files)
    failpoint("objects.gc.old_index")
    check()
    store.delete([pack_key(name) for name in plan.drop_packs if name not in blocked])
    failpoint("objects.gc.deleted")
    objects.refresh()


def _rewrite_packs(
    objects: StoredObjects,
    move: dict[bytes, Entry],
    rows: dict[bytes, Entry],
    sizes: dict[str, int],
    corrupt: dict[str, str],
) -> set[str]:
    """Copy live blobs into new packs and add their rows to ``rows``. Returns the packs that must stay since bytes are damaged."""
    pack, blocked = Pack(), set()

    def seal() -> None:
        if pack.entries:
            data = pack.seal()
            objects.store.put(pack_key(pack.name), data)
            sizes[pack.name] = pack.size

    for raw, entry in sorted(move.items(), key=lambda item: (item[1].pack, item[1].offset)):
        try:
            blob = objects.stored_blob(raw, entry)
        except (Corrupt, NotFound) as error:
            corrupt[raw.hex()] = str(error)
            blocked.add(entry.pack)
            rows[raw] = entry
            continue
        if pack.entries and pack.size + len(blob) > objects.form.pack_bytes:
            seal()
            pack = Pack()
        rows[raw] = pack.add(
            raw, blob, kind=entry.kind | (TREE if objects.index.is_tree(raw) else 0), size=entry.size
        )
    seal()
    return blocked
