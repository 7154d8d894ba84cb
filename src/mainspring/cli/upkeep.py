"""``mainspring doctor | fsck | gc``."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    format_size,
    json_option,
    local_workspace_settings,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_local_workspace,
)
from mainspring.records.base import counted

if TYPE_CHECKING:
    from mainspring.config import Settings
    from mainspring.workspace import Workspace


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check this machine and this workspace; exits 1 if a check fails."""
    from mainspring import config

    place = click.get_current_context().find_root().obj or {}
    settings = config.load(place.get("root"))
    checks = [
        _check_python(),
        _check_sqlite(),
        _check_disk(settings.root),
        _check_fsync(settings.root),
        _check_landlock(),
        _check_server(settings.home),
        _check_workspace(settings),
        *_check_contract(settings),
        _check_chromium(),
    ]
    if as_json:
        print_json([{"check": n, "ok": ok, "found": result} for n, ok, result in checks])
    else:
        for name, ok, result in checks:
            mark = {
                True: click.style("ok  ", fg="green"),
                False: click.style("FAIL", fg="red"),
                None: click.style("note", fg="yellow"),
            }[ok]
            click.echo(f"{mark} {name}: {result}")
    return 1 if any(ok is False for _, ok, _ in checks) else 0


@click.command()
@click.option("--read-data", is_flag=True, help="Read every stored byte, not only the indexes.")
@click.option("--repair", is_flag=True, help="First make again what can be made from what is left.")
@click.option(
    "--start-anew",
    is_flag=True,
    help="The database is lost for good: begin a new one beside the old objects. Removes nothing.",
)
@json_option
def fsck(read_data: bool, repair: bool, start_anew: bool, as_json: bool) -> int:
    """Check every stored object; exits 1 if something is missing or corrupt."""
    from mainspring import workspace as opening

    mended: list[str] = []
    if start_anew:
        aside = opening.start_anew(local_workspace_settings())
        print_note(f"a new database was begun; set aside: {', '.join(aside) or 'nothing'}")
    if repair:
        mended = opening.repair(local_workspace_settings())
    return int(_fsck(mended, read_data=read_data, repair=repair, as_json=as_json))


@with_local_workspace
def _fsck(workspace: Workspace, mended: list[str], *, read_data: bool, repair: bool, as_json: bool) -> int:
    import msgspec

    objects = workspace.base.objects
    if repair:
        mended = [*mended, *objects.repair()]
    report = msgspec.structs.replace(objects.fsck(read_data=read_data), repaired=tuple(mended))
    if as_json:
        print_json(report)
        return 0 if report.ok else 1
    for key in mended:
        print_note(f"repaired: {key}")
    print_facts(
        [
            ("objects", report.objects),
            ("packs", report.packs),
            (
                "read",
                format_size(report.bytes_read) if read_data else "nothing: --read-data reads every byte",
            ),
            ("orphaned packs", len(report.orphaned_packs)),
            ("left over", len(report.leftover_temp)),
        ]
    )
    print_table(
        ("problem", "subject", "place", "detail"),
        [(p.kind, p.subject, p.place, p.detail) for p in report.problems],
        empty="no problems",
    )
    if report.problems and not repair:
        print_note(
            "next: mainspring fsck --repair; what it cannot mend must come from a backup or another copy"
        )
    return 0 if report.ok else 1


@click.command()
@click.option("--yes", is_flag=True, help="Really remove; without it only shows what would go.")
@click.option(
    "--grace",
    "grace_s",
    type=float,
    default=3600.0,
    show_default=True,
    help="Leave packs alone that are younger, in seconds.",
)
@click.option(
    "--even-if-younger",
    is_flag=True,
    help="Also when the database is younger than stored packs, and so cannot know whether they are needed.",
)
@json_option
@with_local_workspace
def gc(workspace: Workspace, yes: bool, grace_s: float, even_if_younger: bool, as_json: bool) -> None:
    """Remove stored objects that nothing refers to. Shows what would go unless --yes."""
    objects = workspace.base.objects
    report = objects.gc(dry_run=not yes, grace_s=grace_s, even_if_younger=even_if_younger)
    if as_json:
        print_json(report)
        return
    print_facts(
        [
            (
                "removed" if yes else "would remove",
                f"{counted(report.objects_removed, 'object')}, {format_size(report.bytes_removed)}",
            ),
            ("kept", f"{counted(report.objects_kept, 'object')}, {format_size(report.bytes_kept)}"),
            ("packs removed", report.packs_removed),
            ("packs rewritten", report.packs_rewritten),
        ]
    )
    for kind, digests in (("missing", report.missing), ("corrupt", report.corrupt)):
        if digests:
            print_note(
                f"{kind}: {counted(len(digests), 'object')} that are still referred to; see mainspring fsck"
            )
    if not yes:
        print_note("nothing was removed; give --yes to do it")


Check = tuple[str, bool | None, str]


def _check_python() -> Check:
    return "python", sys.version_info >= (3, 11), platform.python_version()


def _check_sqlite() -> Check:
    import sqlite3

    safe = sqlite3.sqlite_version_info >= (3, 51, 3)
    return (
        "sqlite",
        sqlite3.sqlite_version_info >= (3, 35, 0),
        sqlite3.sqlite_version + ("" if safe else " (writers are kept apart by our own lock)"),
    )


def _check_disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    return "disk", free > 200 * 1024 * 1024, f"{format_size(free)} free"


def _check_fsync(root: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            return "fsync", True, f"{(time.perf_counter() - start) * 1000:.2f} ms"
    except OSError as error:
        return "fsync", False, str(error)


def _check_landlock() -> Check:
    from mainspring.serving.sandbox import landlock_abi

    abi = landlock_abi()
    return (
        "sandbox",
        True if abi else None,
        f"Landlock ABI {abi}" if abi else "no Landlock: the inference worker is not confined",
    )


def _check_server(home: Path) -> Check:
    import fcntl

    lock = home / "locks" / "server.lock"
    if not lock.exists():
        return "server", True, "none is running"
    with lock.open("r+") as file:
        # A running server holds this lock for as long as it lives, so a failed attempt to take it shows that one runs; a
        # pid alone could belong to another process by now.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "server", True, f"running, pid {file.read(32).strip()}"
    return "server", True, "none is running"


def _check_workspace(settings: Settings) -> Check:
    """Whether database and objects exist and belong together. Creates no workspace where there is none."""
    from mainspring.errors import MainspringError
    from mainspring.workspace import Workspace

    if not settings.home.exists():
        return "workspace", True, f"none yet in {settings.root}"
    try:
        with Workspace(settings) as workspace:
            stats = workspace.base.objects.stats()
    except MainspringError as error:
        return "workspace", False, str(error)
    return "workspace", True, f"{counted(stats.objects, 'object')}, {format_size(stats.stored_bytes)}"


def _check_contract(settings: Settings) -> list[Check]:
    """Whether what the policy names for retrains is there."""
    from mainspring.errors import MainspringError
    from mainspring.loop.contract import find_problems
    from mainspring.workspace import Workspace

    if not settings.config.model:
        return []
    problems = find_problems(settings.config, settings.root)
    if settings.home.exists():
        with contextlib.suppress(MainspringError), Workspace(settings) as workspace:  # reported before
            problems = find_problems(settings.config, settings.root, workspace.models)
    if not problems:
        count = counted(len(settings.config.model), "model")
        return [("retrains", True, f"the policy of {count} fits the project")]
    return [("retrains", False, str(p)) for p in problems]


def _check_chromium() -> Check:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    return "browser", True if path else None, path or "no Chromium: only the page tests need it"
