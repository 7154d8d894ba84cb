"""Writing the bundle: packages first, then ``routes.json`` by rename, each made durable before the next.

A crash at any point leaves a bundle that serves: a package without a route is unused bytes; a route table that was decided and not
written is in the outbox (the table ``bundles``) and the next :func:`write` writes it. A file lock admits one writer at a time.
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
"""How long, in seconds, a package that no route names is kept: a server that is restarting may still need it."""

_STATE = Path("log") / "serving-state.json"


@contextlib.contextmanager
def locked(bundle: Path, *, project: str) -> Iterator[None]:
    """Hold the lock of ``bundle`` as its only writer; raises :class:`Conflict` if it belongs to another project.

    Waits for the lock. Its file holds the name of the project that wrote first.
    """
    bundle.mkdir(parents=True, exist_ok=True, mode=0o700)
    (bundle / PACKAGES).mkdir(exist_ok=True, mode=0o700)
    (bundle / "log").mkdir(exist_ok=True, mode=0o700)
    fd = os.open(bundle / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The kernel gives the lock back when the process dies, so no lock is left behind. Taken before any write transaction:
        # publish() refuses to run inside a decision, so nobody waits here while holding the database's writer lock.
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
    """Make ``bundle`` hold ``table`` and its packages; returns whether anything was written. Call it under :func:`locked`. Idempotent.

    A package that is there is compared with the object store, byte by byte, and written again if it is damaged; the route table is
    then written again too, because servers look at the packages again when it changes.
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
    """Remove packages that nothing has needed for ``grace_s`` seconds; returns their digests. Call it under :func:`locked`.

    What the server's last good table names is kept as well, so that a server that restarts on a broken new table can fall back.
    """
    wanted = keep | _last_good(bundle)
    removed = []
    for folder in (bundle / PACKAGES).iterdir():
        if folder.name in wanted:
            folder.touch()  # the grace period starts when the package was last needed
        elif time.time() - folder.stat().st_mtime > grace_s:
            # Renamed first, since a rename is atomic: a reader sees the whole package or none of it.
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
    digests: set[str] = set()
    for deployment in table.deployments:
        digests |= {t.package for t in deployment.targets} | {s.package for s in deployment.shadows}
    return digests


def materialise(bundle: Path, digest: str, objects: Objects) -> bool:
    """Make ``bundle`` hold package ``digest``, complete and undamaged; returns whether it was written. Call it under :func:`locked`."""
    packages = bundle / PACKAGES
    target = packages / digest
    if target.is_dir() and _is_undamaged(target, objects.tree(digest)):
        return False
    temporary = packages / f".tmp-{digest}"
    shutil.rmtree(temporary, ignore_errors=True)  # what a crash left behind
    objects.materialise(digest, temporary, internal=True)
    for folder, _, files in os.walk(temporary):
        for name in files:
            durable.sync_file(Path(folder) / name)
        durable.sync_folder(Path(folder))
    failpoint("deploy.package.written")
    if target.exists():  # damaged: renamed away, so that a reader sees a whole package or none
        doomed = packages / f".gone-{digest}"
        shutil.rmtree(doomed, ignore_errors=True)
        target.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    temporary.rename(target)
    failpoint("deploy.package.renamed")
    durable.sync_folder(packages)
    return True


def _is_undamaged(folder: Path, entries: Mapping[str, ObjectRef]) -> bool:
    """Whether ``folder`` holds exactly the files of a tree, byte by byte."""
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    if files != set(entries):
        return False
    for path, ref in entries.items():
        file = folder / path
        if file.is_symlink() or not file.is_file() or file.stat().st_size != ref.size:
            return False
        if blake3.blake3().update_mmap(file).hexdigest() != ref.digest:
            return False
    return True


def _last_good(bundle: Path) -> set[str]:
    """Digests of the packages of the table that the server last served without fault; empty if it left no readable state."""
    with contextlib.suppress(OSError, InvalidInput):
        state: dict[str, object] = from_json((bundle / _STATE).read_bytes(), dict[str, object])
        if state.get("good"):
            table: RouteTable = from_json(to_json(state["good"]), RouteTable)
            return packages_of(table)
    return set()
