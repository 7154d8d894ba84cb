"""Opening a database by its address: the engine is chosen, the file checked, the schema brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mainspring.errors import ConfigError
from mainspring.storage.sql.migrations import migrate
from mainspring.storage.sql.store import Engine, Store


def open_store(url: str, *, home: Path, lost: Callable[[], str | None] = lambda: None) -> Store:
    """Open ``sqlite`` (a file in ``home``) or ``postgresql://...`` and bring its schema up to date.

    If there is no database yet, ``lost`` returns the evidence that there was one (None: no evidence). With evidence, and for a
    database file that is cut off or not a database, raises :class:`Corrupt` instead of creating a new one. Raises
    :class:`ConfigError` for another URL.
    """
    engine: Engine
    if url == "sqlite":
        from mainspring.storage.sql.files import check_file
        from mainspring.storage.sql.sqlite import SqliteEngine

        check_file(home / "meta.db", lost)
        engine = SqliteEngine(home / "meta.db", lock=home / "locks" / "write.lock")
    elif url.startswith(("postgresql://", "postgres://")):
        from mainspring.storage.sql.postgres import PostgresEngine

        engine = PostgresEngine(url)
    else:
        raise ConfigError(
            "unknown database",
            value=url.rsplit("@", maxsplit=1)[-1],
            next_step="Use 'sqlite' or 'postgresql://...'.",
        )
    try:
        migrate(engine, lost)
    except BaseException:
        engine.close()
        raise
    return Store(engine)
