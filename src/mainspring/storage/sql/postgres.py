"""PostgreSQL through psycopg 3: one connection per thread, the same SQL as SQLite.

Extra ``postgres``. The URL may name a schema: ``postgresql://host/db?options=-csearch_path%3Dname``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.errors import MissingExtra, StorageFull, Unavailable
from mainspring.storage.failpoints import failpoint
from mainspring.storage.sql.store import Row, Session, Value

if TYPE_CHECKING:
    import psycopg

_MIGRATION_LOCK = 0x6D61696E  # "main": the advisory lock that serialises migrations


@functools.lru_cache(maxsize=2048)
def translate(sql: str) -> str:
    """``?`` placeholders as psycopg's ``%s``, outside quotes.

    >>> translate("SELECT '?%' WHERE a = ?")
    "SELECT '?%%' WHERE a = %s"
    """
    quoted = False
    out: list[str] = []
    for char in sql:
        if char == "'":
            quoted = not quoted
        out.append("%%" if char == "%" else "%s" if char == "?" and not quoted else char)
    return "".join(out)


class _Session:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def query(self, sql: str, values: Sequence[Value]) -> list[Row]:
        cursor = self._connection.execute(translate(sql), tuple(values))
        names = [d.name for d in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def execute(self, sql: str, values: Sequence[Value]) -> int:
        return self._connection.execute(translate(sql), tuple(values)).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(translate(sql), [tuple(row) for row in rows])


class PostgresEngine:
    name = "postgres"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ModuleNotFoundError:
            raise MissingExtra.for_library("psycopg", extra="postgres") from None
        self._psycopg = psycopg
        self._url = url
        self._pid = os.getpid()
        self._local = threading.local()
        self._all: list[psycopg.Connection[Any]] = []
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        with self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        with self._transaction("BEGIN") as session:
            yield session
            failpoint("sql.before_commit")
        failpoint("sql.after_commit")

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Session]:
        with self._transaction("BEGIN") as session:
            session.query("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
            yield session

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._guard:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Session]:
        connection = self._begun(begin)
        with self._translated():
            try:
                yield _Session(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(self._psycopg.Error):
                    connection.execute("ROLLBACK")
                raise

    def _begun(self, begin: str) -> psycopg.Connection[Any]:
        """This thread's connection with a transaction open. One that the server dropped meanwhile is replaced: nothing was
        sent over it yet, so nothing can happen twice (SAFETY T17)."""
        with self._translated():
            connection = self._connection()
            try:
                connection.execute(begin)
            except (self._psycopg.OperationalError, self._psycopg.InterfaceError):
                if not connection.closed:
                    raise
                self._forget(connection)
                connection = self._connection()
                connection.execute(begin)
            return connection

    def _forget(self, connection: psycopg.Connection[Any]) -> None:
        connection.close()
        self._local.connection = None
        with self._guard, contextlib.suppress(ValueError):
            self._all.remove(connection)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.errors.DiskFull as error:
            raise StorageFull(
                "the database has no space left", next_step="Free space, then try again."
            ) from error
        except (self._psycopg.errors.SerializationFailure, self._psycopg.errors.DeadlockDetected) as error:
            raise Unavailable(
                "lost a race in the database", next_step="Try again with the same idempotency key."
            ) from error
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            self._local.connection = None
            raise Unavailable(
                f"the database is not reachable: {str(error).splitlines()[0]}",
                next_step="Check that it runs, then try again.",
            ) from error

    def _connection(self) -> psycopg.Connection[Any]:
        if os.getpid() != self._pid:
            raise Unavailable(
                "this workspace was opened before a fork", next_step="Open it again in the child process."
            )
        connection: psycopg.Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            with self._translated():
                connection = self._psycopg.connect(self._url, autocommit=True)
            _agree_with_sqlite(connection)
            with self._guard:
                self._all.append(connection)
            self._local.connection = connection
        return connection


def _agree_with_sqlite(connection: psycopg.Connection[Any]) -> None:
    """The same Python values as from SQLite: truth values are 0 and 1, and a sum of integers is an integer.

    PostgreSQL answers ``sum(BIGINT)`` with a ``numeric``, which psycopg would give as a Decimal.
    """
    from psycopg.adapt import Dumper, Loader
    from psycopg.types.numeric import Int8Dumper

    class Number(Loader):
        def load(self, data: Any) -> int | float:
            text = bytes(data)
            return int(text) if text.lstrip(b"-").isdigit() else float(text)

    class Truth(Loader):
        def load(self, data: Any) -> int:
            return int(bytes(data) == b"t")

    class Bit(Dumper):
        oid = Int8Dumper.oid

        def dump(self, obj: Any) -> bytes:
            return b"1" if obj else b"0"

    connection.adapters.register_loader("numeric", Number)
    connection.adapters.register_loader("bool", Truth)
    connection.adapters.register_dumper(bool, Bit)
