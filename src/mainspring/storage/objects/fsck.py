"""Checks that every stored object exists and is intact. Damage never raises: each is a line of the report."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mainspring.errors import Corrupt, NotFound
from mainspring.records.objects import FsckProblem, FsckReport
from mainspring.storage.objects.bytestore import Sweepable
from mainspring.storage.objects.chunking import RepositoryFormat
from mainspring.storage.objects.gc import mark
from mainspring.storage.objects.index import TREE, Entry, Index, IndexFile, is_mark
from mainspring.storage.objects.owner import FORMAT_KEY, OWNER_KEY, owner_of
from mainspring.storage.objects.pack import pack_key, read_table
from mainspring.storage.objects.repair import check_blob

if TYPE_CHECKING:
    from mainspring.storage.objects.stored import StoredObjects


def check(
    objects: StoredObjects, roots: Iterable[str], *, read_data: bool, subset: tuple[int, int]
) -> FsckReport:
    """See :meth:`Objects.fsck`."""
    problems: list[FsckProblem] = [*_check_format(objects), *_check_index(objects)]
    sizes = {key.removeprefix("packs/"): size for key, size in objects.store.list("packs/")}
    known = objects.index.packs
    problems += _check_packs(objects, known, sizes)
    problems += _check_reachable(objects, roots)
    bytes_read = 0
    if read_data:
        damage, bytes_read = _check_data(
            objects, [name for name in sorted(sizes) if _is_in_subset(name, subset)]
        )
        problems += damage
    store = objects.store
    return FsckReport(
        ok=not problems,
        problems=tuple(_add_owners(objects, problems)),
        objects=len({raw for raw, _ in objects.index}),
        packs=len(sizes),
        bytes_read=bytes_read,
        orphaned_packs=tuple(sorted(sizes.keys() - known.keys())),
        leftover_temp=tuple(store.leftovers(older_than_s=0)) if isinstance(store, Sweepable) else (),
    )


def _check_index(objects: StoredObjects) -> list[FsckProblem]:
    """Read every index file again from the store; the damaged ones are reported and left out."""
    problems, files, marked = [], [], set()
    for key, _ in sorted(objects.store.list("index/")):
        name = key.removeprefix("index/")
        if is_mark(name):
            marked.add(bytes.fromhex(name.partition(".")[0]))
            continue
        try:
            files.append(IndexFile(name, objects.store.get(key)))
        except NotFound:  # merged meanwhile
            continue
        except Corrupt as error:
            problems.append(FsckProblem(kind="corrupt", subject=key, place=key, detail=error.message))
    objects.use_index(Index(files, damaged=frozenset(marked)))
    return problems


def _check_packs(objects: StoredObjects, known: dict[str, int], sizes: dict[str, int]) -> list[FsckProblem]:
    problems = []
    for name, size in sorted(known.items()):
        place = f"packs/{name}"
        if name not in sizes:
            lost = tuple(sorted(raw.hex() for raw, entry in objects.index if entry.pack == name))
            problems.append(
                FsckProblem(
                    kind="missing",
                    subject=place,
                    place=place,
                    detail=f"a pack of {len(lost)} blobs",
                    objects=lost,
                )
            )
        elif sizes[name] != size:
            problems.append(
                FsckProblem(
                    kind="wrong_size",
                    subject=place,
                    place=place,
                    detail=f"{sizes[name]} bytes instead of {size}",
                )
            )
    return problems


def _check_reachable(objects: StoredObjects, roots: Iterable[str]) -> list[FsckProblem]:
    reached = mark(objects, roots)
    problems = []
    for digest, origin in sorted(reached.missing.items()):
        if origin == "reference":
            problems.append(
                FsckProblem(
                    kind="dangling",
                    subject=digest,
                    place="a reference",
                    detail="the database refers to it",
                    objects=(digest,),
                )
            )
        else:
            problems.append(
                FsckProblem(
                    kind="missing",
                    subject=digest,
                    place=f"object {origin}",
                    detail="an object lists it",
                    objects=(origin,),
                )
            )
    problems += [
        FsckProblem(
            kind="wrong_size", subject=d, place=f"object {o}", detail="listed with another size", objects=(o,)
        )
        for d, o in sorted(reached.wrong_size.items())
    ]
    problems += [
        FsckProblem(kind="corrupt", subject=d, place="object", detail=why, objects=(d,))
        for d, why in sorted(reached.corrupt.items())
    ]
    return problems


def _check_format(objects: StoredObjects) -> list[FsckProblem]:
    """Problems of ``format.json`` and ``owner.json``, which are read again and compared with what was read at opening."""
    problems = []
    for key, read, expected in (
        (FORMAT_KEY, lambda: RepositoryFormat.load(objects.store.get(FORMAT_KEY)), objects.form),
        (OWNER_KEY, lambda: owner_of(objects.store), objects.owner),
    ):
        try:
            detail = "" if read() == expected else "its content has changed since the store was opened"
        except (Corrupt, NotFound) as error:
            detail = error.message
        if detail:
            problems.append(FsckProblem(kind="corrupt", subject=key, place=key, detail=detail))
    return problems


def _check_data(objects: StoredObjects, packs: list[str]) -> tuple[list[FsckProblem], int]:
    """Every byte of the packs: header, blobs (also those that no index lists), table and end."""
    problems, total = [], 0
    by_pack: dict[str, dict[bytes, Entry]] = {}
    for raw, entry in objects.index:
        by_pack.setdefault(entry.pack, {})[raw] = entry
    for name in packs:
        place = f"packs/{name}"
        try:
            data = objects.store.get(pack_key(name))
        except (Corrupt, NotFound) as error:
            problems.append(FsckProblem(kind="corrupt", subject=place, place=place, detail=error.message))
            continue
        total += len(data)
        indexed = by_pack.get(name, {})
        try:
            table = read_table(name, data)
        except Corrupt as error:
            table = {}
            problems.append(FsckProblem(kind="corrupt", subject=place, place=place, detail=error.message))
        else:
            problems += _compare_tables(indexed, table, place)
        rows = table | indexed
        for raw, entry in sorted(rows.items(), key=lambda item: item[1].offset):
            why = _find_damage(objects, raw, entry, data, indexed=raw in indexed)
            if why:
                where = f"{place} at {entry.offset}"
                problems.append(FsckProblem(kind="corrupt", subject=raw.hex(), place=where, detail=why))
    return problems, total


def _find_damage(objects: StoredObjects, raw: bytes, entry: Entry, data: bytes, *, indexed: bool) -> str:
    """What is wrong with a blob; empty for an intact one."""
    try:
        check_blob(raw, entry, data[entry.offset : entry.offset + entry.length])
    except Corrupt as error:
        if not indexed:
            return f"{error.message} (nothing refers to it)"
        try:
            # Read again through the store, which marks the blob as damaged: the next put of these bytes stores them again.
            objects.stored_blob(raw, entry)
        except (Corrupt, NotFound) as reread:
            return reread.message
    return ""


def _compare_tables(indexed: dict[bytes, Entry], table: dict[bytes, Entry], place: str) -> list[FsckProblem]:
    return [
        FsckProblem(
            kind="corrupt",
            subject=f"{place} {raw.hex()}",
            place=place,
            detail="the index places a blob where the pack's own table does not",
        )
        for raw, entry in indexed.items()
        if (recorded := table.get(raw)) is None
        or recorded._replace(kind=recorded.kind | TREE) != entry._replace(kind=entry.kind | TREE)
    ]


def _add_owners(objects: StoredObjects, problems: list[FsckProblem]) -> list[FsckProblem]:
    """The problems, each with the whole objects that a damaged blob belongs to: itself, or all chunked objects that contain it."""
    damaged = {p.subject for p in problems if p.kind == "corrupt" and not p.objects and len(p.subject) == 64}
    if not damaged:
        return _remove_duplicates(problems)
    owners: dict[str, set[str]] = {digest: set() for digest in damaged}
    for raw, entry in objects.index:
        if entry.is_recipe:
            try:
                inner = {
                    d.hex() for d, _ in (*objects.recipe_as_stored(raw).entries, *objects.recipe(raw).entries)
                }
            except (Corrupt, NotFound):
                continue
            for digest in inner & damaged:
                owners[digest].add(raw.hex())
    return _remove_duplicates(
        [
            p
            if p.subject not in damaged or p.objects
            else _with_objects(p, tuple(sorted(owners[p.subject] or {p.subject})))
            for p in problems
        ]
    )


def _remove_duplicates(problems: list[FsckProblem]) -> list[FsckProblem]:
    seen: dict[tuple[str, str], FsckProblem] = {}
    for problem in problems:
        seen[problem.kind, problem.subject] = problem
    return list(seen.values())


def _with_objects(problem: FsckProblem, objects: tuple[str, ...]) -> FsckProblem:
    return FsckProblem(
        kind=problem.kind,
        subject=problem.subject,
        place=problem.place,
        detail=problem.detail,
        objects=objects,
    )


def _is_in_subset(name: str, subset: tuple[int, int]) -> bool:
    part, of = subset
    return zlib.crc32(name.encode()) % of == part - 1
