"""Writing the bundle: packages first, then ``routes.json`` by rename, each made durable before the next.

A crash at any point leaves a bundle that serves: a package without a route is unused bytes, a decided but unwritten route table
stands in the outbox and is written by the next :func:`write`. One writer at a time, by a file lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import blake3

from mainspring import durable
from mainspring.errors import Conflict, InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.records.objects import ObjectRef
from mainspring.records.serving import ROUTES_FILE, RouteTable
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.objects import Objects

declare("deploy.package.written", "deploy.package.renamed", "deploy.routes.written", "deploy.routes.renamed")

PACKAGES = "packages"
GRACE_S = 900.0
"""How long a package that no route names stays: a server that is restarting may still want it."""

_STATE = Path("log") / "serving-state.json"


@contextlib.contextmanager
def locked(bundle: Path, *, project: str) -> Iterator[None]:
    """Be the only writer of ``bundle``; raises :class:`Conflict` if it belongs to another project."""
    bundle.mkdir(parents=True, exist_ok=True, mode=0o700)
    (bundle / PACKAGES).mkdir(exist_ok=True, mode=0o700)
    (bundle / "log").mkdir(exist_ok=True, mode=0o700)
    fd = os.open(bundle / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        owner = os.pread(fd, 200, 0).decode()
        if owner and owner != project:
            raise Conflict(
                "this bundle belongs to another project",
                value=owner,
                place=str(bundle),
                next_step="Each project of a workspace has a folder of its own; give this one to nobody else.",
            )
        if not owner:
            os.pwrite(fd, project.encode(), 0)
        yield
    finally:
        os.close(fd)


def served_number(bundle: Path) -> int:
    """The number of the route table in ``bundle``, 0 without a readable one."""
    with contextlib.suppress(OSError, InvalidInput):
        table: RouteTable = from_json((bundle / ROUTES_FILE).read_bytes(), RouteTable)
        return table.number
    return 0


def write(bundle: Path, table: RouteTable, objects: Objects) -> bool:
    """Bring ``bundle`` to ``table``; whether anything had to be written. Call it under :func:`locked`. Idempotent.

    A package that is there is compared with the object store, byte by byte, and made anew if it is damaged; the route table is then
    written again too, so that servers look at once.
    """
    changed = [materialise(bundle, digest, objects) for digest in sorted(packages_of(table))]
    data = to_json(table)
    path = bundle / ROUTES_FILE
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data and not any(changed):
            return False
    temporary = durable.stage(path, data, mode=0o644)  # servers may run as another user
    failpoint("deploy.routes.written")
    temporary.replace(path)
    failpoint("deploy.routes.renamed")
    durable.sync_folder(bundle)
    return True


def prune(bundle: Path, keep: set[str], *, grace_s: float = GRACE_S) -> list[str]:
    """Remove packages that nothing needs and that have not been needed for ``grace_s`` seconds; returns their digests.

    Kept as well: what the server's last good table names, so that a restart on a broken new table can fall back.
    """
    wanted = keep | _last_good(bundle)
    removed = []
    for folder in (bundle / PACKAGES).iterdir():
        if folder.name in wanted:
            folder.touch()  # the grace counts from when it was last needed
        elif time.time() - folder.stat().st_mtime > grace_s:
            # Renamed first: a reader finds the package whole or not at all.
            doomed = folder.with_name(f".gone-{folder.name}")
            if not folder.name.startswith("."):
                folder.rename(doomed)
                removed.append(folder.name)
            else:
                doomed = folder
            shutil.rmtree(doomed)
    return removed


def packages_of(table: RouteTable) -> set[str]:
    """Digests of all packages that ``table`` names."""
    found: set[str] = set()
    for deployment in table.deployments:
        found |= {t.package for t in deployment.targets} | {s.package for s in deployment.shadows}
    return found


def materialise(bundle: Path, digest: str, objects: Objects) -> bool:
    """Have package ``digest`` whole and sound in ``bundle``; whether it had to be written. Call it under :func:`locked`."""
    packages = bundle / PACKAGES
    target = packages / digest
    if target.is_dir() and _sound(target, objects.tree(digest)):
        return False
    temporary = packages / f".tmp-{digest}"
    shutil.rmtree(temporary, ignore_errors=True)  # what a crash left behind
    objects.materialise(digest, temporary, internal=True)
    for folder, _, files in os.walk(temporary):
        for name in files:
            durable.sync_file(Path(folder) / name)
        durable.sync_folder(Path(folder))
    failpoint("deploy.package.written")
    if target.exists():  # damaged: out of the way by rename, so that a reader finds all of one or nothing
        doomed = packages / f".gone-{digest}"
        shutil.rmtree(doomed, ignore_errors=True)
        target.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    temporary.rename(target)
    failpoint("deploy.package.renamed")
    durable.sync_folder(packages)
    return True


def _sound(folder: Path, entries: Mapping[str, ObjectRef]) -> bool:
    """Whether ``folder`` holds exactly the files of a tree, byte by byte."""
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    if found != set(entries):
        return False
    for path, ref in entries.items():
        file = folder / path
        if file.is_symlink() or not file.is_file() or file.stat().st_size != ref.size:
            return False
        if blake3.blake3().update_mmap(file).hexdigest() != ref.digest:
            return False
    return True


def _last_good(bundle: Path) -> set[str]:
    with contextlib.suppress(OSError, InvalidInput):
        state: dict[str, object] = from_json((bundle / _STATE).read_bytes(), dict[str, object])
        if state.get("good"):
            table: RouteTable = from_json(to_json(state["good"]), RouteTable)
            return packages_of(table)
    return set()
