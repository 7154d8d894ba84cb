"""Is everything there, and is it what it says? Never raises on damage: each is a line of the report."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mainspring.errors import Corrupt, NotFound
from mainspring.records.objects import FsckProblem, FsckReport
from mainspring.storage.objects.bytestore import Sweepable
from mainspring.storage.objects.gc import mark
from mainspring.storage.objects.index import Entry, Index, IndexFile, is_mark

if TYPE_CHECKING:
    from mainspring.storage.objects.store import Objects


def check(objects: Objects, roots: Iterable[str], *, read_data: bool, subset: tuple[int, int]) -> FsckReport:
    """See :meth:`Objects.fsck`."""
    problems: list[FsckProblem] = _load_index(objects)
    sizes = {key.removeprefix("packs/"): size for key, size in objects.store.list("packs/")}
    known = objects.index.packs
    problems += _pack_problems(objects, known, sizes)
    problems += _reach_problems(objects, roots)
    bytes_read = 0
    if read_data:
        damage, bytes_read = _read_all(objects, {n for n in known if n in sizes and _chosen(n, subset)})
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


def _read_all(objects: Objects, packs: set[str]) -> tuple[list[FsckProblem], int]:
    problems, total = [], 0
    by_pack: dict[str, dict[bytes, Entry]] = {}
    for raw, entry in objects.index:
        if entry.pack in packs:
            by_pack.setdefault(entry.pack, {})[raw] = entry
    for name in sorted(by_pack):
        for raw, entry in sorted(by_pack[name].items(), key=lambda item: item[1].offset):
            total += entry.length
            try:
                objects.stored_blob(raw, entry)
            except (Corrupt, NotFound) as error:
                problems.append(
                    FsckProblem(
                        kind="corrupt",
                        subject=raw.hex(),
                        place=f"packs/{name} at {entry.offset}",
                        detail=error.message,
                    )
                )
    return problems, total


def _with_owners(objects: Objects, problems: list[FsckProblem]) -> list[FsckProblem]:
    """Say which whole objects a damaged blob spoils: itself, or every chunked object that contains it."""
    damaged = {p.subject for p in problems if p.kind == "corrupt" and not p.objects and "/" not in p.subject}
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
