"""Is everything there, and is it what it says? Never raises on damage: each is a line of the report."""

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
    from mainspring.storage.objects.store import Objects


def check(objects: Objects, roots: Iterable[str], *, read_data: bool, subset: tuple[int, int]) -> FsckReport:
    """See :meth:`Objects.fsck`."""
    problems: list[FsckProblem] = [*_format_problems(objects), *_load_index(objects)]
    sizes = {key.removeprefix("packs/"): size for key, size in objects.store.list("packs/")}
    known = objects.index.packs
    problems += _pack_problems(objects, known, sizes)
    problems += _reach_problems(objects, roots)
    bytes_read = 0
    if read_data:
        damage, bytes_read = _read_all(objects, [name for name in sorted(sizes) if _chosen(name, subset)])
        problems += damage
    store = objects.store
    return FsckReport(
        ok=not problems,
        problems=tuple(_with_owners(objects, problems)),
        objects=len({raw for raw, _ in objects.index}),
        packs=len(sizes),
        bytes_read=bytes_read,
        orphaned_packs=tuple(sorted(sizes.keys() - known.keys())),
        leftover_temp=tuple(store.leftovers(older_than_s=0)) if isinstance(store, Sweepable) else (),
    )


def _load_index(objects: Objects) -> list[FsckProblem]:
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


def _pack_problems(objects: Objects, known: dict[str, int], sizes: dict[str, int]) -> list[FsckProblem]:
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


def _reach_problems(objects: Objects, roots: Iterable[str]) -> list[FsckProblem]:
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


def _format_problems(objects: Objects) -> list[FsckProblem]:
    """The files that say what the store is, read again: a running process knows what they said."""
    problems = []
    for key, read, wanted in (
        (FORMAT_KEY, lambda: RepositoryFormat.load(objects.store.get(FORMAT_KEY)), objects.form),
        (OWNER_KEY, lambda: owner_of(objects.store), objects.owner),
    ):
        try:
            detail = "" if read() == wanted else "it says something else than when the store was opened"
        except (Corrupt, NotFound) as error:
            detail = error.message
        if detail:
            problems.append(FsckProblem(kind="corrupt", subject=key, place=key, detail=detail))
    return problems


def _read_all(objects: Objects, packs: list[str]) -> tuple[list[FsckProblem], int]:
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
            problems += _disagreements(indexed, table, place)
        rows = table | indexed
        for raw, entry in sorted(rows.items(), key=lambda item: item[1].offset):
            why = _damage(objects, raw, entry, data, indexed=raw in indexed)
            if why:
                where = f"{place} at {entry.offset}"
                problems.append(FsckProblem(kind="corrupt", subject=raw.hex(), place=where, detail=why))
    return problems, total


def _damage(objects: Objects, raw: bytes, entry: Entry, data: bytes, *, indexed: bool) -> str:
    """What is wrong with a blob, or nothing."""
    try:
        check_blob(raw, entry, data[entry.offset : entry.offset + entry.length])
    except Corrupt as error:
        if not indexed:
            return f"{error.message} (nothing refers to it)"
        try:
            objects.stored_blob(
                raw, entry
            )  # again, so that it is marked and whoever has the bytes stores them anew
        except (Corrupt, NotFound) as again:
            return again.message
    return ""


def _disagreements(indexed: dict[bytes, Entry], table: dict[bytes, Entry], place: str) -> list[FsckProblem]:
    return [
        FsckProblem(
            kind="corrupt",
            subject=f"{place} {raw.hex()}",
            place=place,
            detail="the index places a blob where the pack's own table does not",
        )
        for raw, entry in indexed.items()
        if (own := table.get(raw)) is None
        or own._replace(kind=own.kind | TREE) != entry._replace(kind=entry.kind | TREE)
    ]


def _with_owners(objects: Objects, problems: list[FsckProblem]) -> list[FsckProblem]:
    """Say which whole objects a damaged blob spoils: itself, or every chunked object that contains it."""
    damaged = {p.subject for p in problems if p.kind == "corrupt" and not p.objects and len(p.subject) == 64}
    if not damaged:
        return _unique(problems)
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
    return _unique(
        [
            p
            if p.subject not in damaged or p.objects
            else _replace(p, tuple(sorted(owners[p.subject] or {p.subject})))
            for p in problems
        ]
    )


def _unique(problems: list[FsckProblem]) -> list[FsckProblem]:
    seen: dict[tuple[str, str], FsckProblem] = {}
    for problem in problems:
        seen[problem.kind, problem.subject] = problem
    return list(seen.values())


def _replace(problem: FsckProblem, objects: tuple[str, ...]) -> FsckProblem:
    return FsckProblem(
        kind=problem.kind,
        subject=problem.subject,
        place=problem.place,
        detail=problem.detail,
        objects=objects,
    )


def _chosen(name: str, subset: tuple[int, int]) -> bool:
    part, of = subset
    return zlib.crc32(name.encode()) % of == part - 1
