"""Schema versions. ``v001/*.sql`` is version 1, one file per room; ``vNNN`` holds the step to version NNN.

What SQL cannot express is done by a Python file, at most one in a version: ``NN_name.py`` with ``def migrate(tx: Writer) -> None``. SQL and Python run in
the order of their file names. A Python file goes through large tables in batches, so that memory does not grow with them, and
imports only modules that do not change (ids, JSON), so that an old migration does the same in every later release.

All steps run in one exclusive transaction, so several first starts at the same time migrate once, and a process killed in the
middle leaves the old version. A database newer than this program is refused, untouched.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from importlib.resources import files
from typing import Any

from mainspring.errors import Conflict
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql.files import Lost, emptied, not_ours
from mainspring.storage.sql.store import Engine, Session, Writer

declare("sql.migrate.step", "sql.migrate.file")

LATEST = 2


def migrate(engine: Engine, lost: Lost = lambda: None) -> int:
    """Bring the schema to :data:`LATEST`; returns the version it had before (0 for an empty database).

    Raises :class:`Corrupt` for an empty database if ``lost`` says that there was one before.
    """
    before = _read_version(engine)
    if before == LATEST:
        return before
    evidence = None if before else lost()
    with engine.migrating() as session:
        # Read again inside the exclusive transaction: another process may have migrated meanwhile
        version = _version(session, engine.name)
        if not version and engine.name == "sqlite" and table_names(session, engine.name):
            raise not_ours("meta.db")
        if not version and evidence is not None:
            raise emptied("the database", evidence)
        if version > LATEST:
            raise Conflict(
                f"this database has schema version {version}, this program knows {LATEST}",
                next_step="Upgrade mainspring; the database was not touched.",
            )
        for step in range(version + 1, LATEST + 1):
            _apply(session, engine.name, step)
            failpoint("sql.migrate.step")
    return before


def _read_version(engine: Engine) -> int:
    with contextlib.suppress(Exception), engine.reading() as session:
        return _version(session, engine.name)
    return 0


def _version(session: Session, engine: str) -> int:
    exists = (
        "SELECT count(*) AS n FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
        if engine == "sqlite"
        else "SELECT count(*) AS n FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = 'schema_version'"
    )
    if not session.query(exists, ())[0]["n"]:
        return 0
    return int(session.query("SELECT max(version) AS v FROM schema_version", ())[0]["v"] or 0)


def _apply(session: Session, engine: str, step: int) -> None:
    version = f"v{step:03d}"
    for script in sorted((files(__name__) / version).iterdir(), key=lambda f: f.name):
        name, _, kind = script.name.rpartition(".")
        if kind == "sql":
            for statement in _statements(script.read_text(), engine):
                session.execute(statement, ())
        elif kind == "py":
            importlib.import_module(f"{__name__}.{version}.{name}").migrate(Writer(session))
        else:
            continue
        failpoint("sql.migrate.file")
    session.execute("INSERT INTO schema_version (version) VALUES (?)", (step,))


def _statements(script: str, engine: str) -> list[str]:
    text = "\n".join(line.split("--", 1)[0] for line in script.splitlines())
    if engine == "sqlite":
        text = text.replace("BYTEA", "BLOB")
    else:  # sort by bytes, as SQLite and Python do, whatever the server's locale
        text = re.sub(r"\bTEXT\b", 'TEXT COLLATE "C"', text)
    return [s.strip() for s in text.split(";") if s.strip()]


def table_names(session: Any, engine: str) -> list[str]:
    """All tables, for tests and ``fsck``."""
    sql = (
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        if engine == "sqlite"
        else "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = current_schema()"
    )
    return sorted(row["name"] for row in session.query(sql, ()))
