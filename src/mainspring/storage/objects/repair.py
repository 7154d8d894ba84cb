"""Repairs from what is left: index files from the tables of the packs, and the frame of a pack around its intact blobs.

Order, as in gc: new packs, then one new index, then the old index files go, then the old packs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import blake3

from mainspring.errors import Corrupt, InvalidInput, NotFound, TooLarge
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.objects.chunking import Recipe
from mainspring.storage.objects.index import (
    TREE,
    Entry,
    Index,
    IndexFile,
    dump_index,
    join_entries,
    new_index_name,
)
from mainspring.storage.objects.pack import Pack, pack_key, read_table, salvage_table
from mainspring.storage.objects.trees import MAX_TREE_BYTES, load_tree

if TYPE_CHECKING:
    from mainspring.storage.objects.stored import StoredObjects

declare("objects.repair.packs", "objects.repair.index", "objects.repair.deleted")


def check_blob(raw: bytes, entry: Entry, data: bytes) -> None:
    """Raise :class:`Corrupt` unless ``data`` matches ``entry``: the object's own bytes, or its recipe."""
    if entry.is_recipe:
        Recipe.load(data, raw)
    elif blake3.blake3(data).digest() != raw:
        raise Corrupt("its stored bytes have another digest", value=raw.hex())


def repair(objects: StoredObjects, *, check: Callable[[], None]) -> list[str]:
    """Repair index files and frames of packs; returns the keys that were damaged. ``check`` raises when the exclusive hold is lost.

    A damaged blob stays as it is: only another copy can replace it. Intact files are not changed.
    """
    store = objects.store
    rows, damaged, files = _read_intact_rows(objects)
    sizes = {key.removeprefix("packs/"): size for key, size in store.list("packs/")}
    broken: list[str] = []
    for name in sorted(sizes):
        try:
            table = read_table(name, store.get(pack_key(name)))
        except (Corrupt, NotFound):
            broken.append(name)
            continue
        for raw, entry in table.items() if damaged else ():
            rows[raw] = join_entries(rows.get(raw), entry)
    replaced = _copy_blobs(objects, broken, rows, sizes)
    failpoint("objects.repair.packs")
    if not damaged and not replaced:
        return []
    # Rows of lost packs stay in the index, so that fsck reports them.
    sizes |= {entry.pack: 0 for entry in rows.values() if entry.pack not in sizes}
    if damaged:
        _flag_trees(objects, rows, sizes)
    check()
    if rows:
        store.put(f"index/{new_index_name()}", dump_index(rows, sizes))
    failpoint("objects.repair.index")
    check()
    store.delete(files)
    store.delete([pack_key(name) for name in replaced])
    failpoint("objects.repair.deleted")
    objects.use_index(Index())
    objects.refresh()
    return sorted([*damaged, *(f"packs/{name}" for name in replaced)])


def _read_intact_rows(objects: StoredObjects) -> tuple[dict[bytes, Entry], list[str], list[str]]:
    """The rows of the intact index files, the keys of the damaged ones, and the keys of all."""
    rows: dict[bytes, Entry] = {}
    damaged, files = [], []
    for key in sorted(key for key, _ in objects.store.list("index/") if key.endswith(".idx")):
        files.append(key)
        try:
            file = IndexFile(key.removeprefix("index/"), objects.store.get(key))
        except Corrupt:
            damaged.append(key)
            continue
        for raw, entry in file:
            rows[raw] = join_entries(rows.get(raw), entry)
    return rows, damaged, files


def _copy_blobs(
    objects: StoredObjects, broken: list[str], rows: dict[bytes, Entry], sizes: dict[str, int]
) -> list[str]:
    """Copy the blobs of packs with a damaged frame into new packs, if all that the index lists are intact; returns the old packs."""
    done = []
    for name in broken:
        pack = Pack()
        try:
            data = objects.store.get(pack_key(name))
            entries = _salvage_rows(name, data) | {
                raw: entry for raw, entry in rows.items() if entry.pack == name
            }
            for raw, entry in sorted(entries.items(), key=lambda item: item[1].offset):
                blob = data[entry.offset : entry.offset + entry.length]
                check_blob(raw, entry, blob)
                pack.add(raw, blob, kind=entry.kind, size=entry.size)
        except (Corrupt, NotFound):
            continue
        if not entries:  # no row is known: the pack may hold blobs of a damaged index
            continue
        rows |= pack.entries
        objects.store.put(pack_key(pack.name), pack.seal())
        sizes[pack.name] = pack.size
        done.append(name)
    return done


def _salvage_rows(name: str, data: bytes) -> dict[bytes, Entry]:
    try:
        return salvage_table(name, data)
    except Corrupt:
        return {}


def _flag_trees(objects: StoredObjects, rows: dict[bytes, Entry], sizes: dict[str, int]) -> None:
    """Flag every object that can be read as a tree: a table may be older than the flag, and gc must follow all trees."""
    objects.use_index(Index([IndexFile("repaired", dump_index(rows, sizes))]))
    for raw, entry in list(rows.items()):
        if entry.is_tree or entry.size > MAX_TREE_BYTES:
            continue
        try:
            first = next(iter(objects.chunks(raw.hex())), b"")
            if first.startswith(b'{"'):
                load_tree(objects.read(raw.hex()), place="tree")
                rows[raw] = entry._replace(kind=entry.kind | TREE)
        except (Corrupt, NotFound, InvalidInput, TooLarge):
            continue
