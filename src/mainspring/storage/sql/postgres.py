"""PostgreSQL through psycopg 3: each transaction takes a connection of a pool. The SQL is the same as for SQLite.

Extra ``postgres``. The URL may name a schema: ``postgresql://host/db?options=-csearch_path%3Dname``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.errors import Conflict, InvalidInput, MissingExtra, StorageFull, Unavailable
from mainspring.storage.failpoints import failpoint
from mainspring.storage.sql.store import Row, Session, Value

if TYPE_CHECKING:
    import psycopg

_MIGRATION_LOCK = 0x6D61696E  # "main": the advisory lock that serialises migrations

_MAX_IDLE = 16
"""Idle connections in the pool; further ones are closed after their transaction."""


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
        self._idle: list[psycopg.Connection[Any]] = []
        self._closings = 0  # counts close() calls: a connection taken before one is not returned to the pool
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        # REPEATABLE READ: all statements of a read see one snapshot, as they do in SQLite.
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
            # Released by the server with the transaction, so a process that dies while migrating blocks nobody.
            session.query("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
            yield session

    def keep_back(self, extra: int) -> None:
        """Nothing: the database's disk is not on this machine."""

    def freeing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._guard:
            idle, self._idle = self._idle, []
            self._closings += 1
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Session]:
        # A connection per transaction, not per thread: threads are short-lived, and a thread may open a second read inside a stream.
        closings = self._closings
        connection = self._begin_transaction(begin)
        try:
            with self._translate_errors():
                try:
                    yield _Session(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(self._psycopg.Error):
                        connection.execute("ROLLBACK")
                    raise
        finally:
            self._return_connection(connection, closings)

    def _begin_transaction(self, begin: str) -> psycopg.Connection[Any]:
        """A connection with an open transaction. An idle one that the server has closed is replaced: no statement was sent over
        it yet, so none can be executed twice (SAFETY T17)."""
        if os.getpid() != self._pid:
            raise Unavailable(
                "this workspace was opened before a fork", next_step="Open it again in the child process."
            )
        with self._translate_errors():
            while (connection := self._take_idle()) is not None:
                try:
                    connection.execute(begin)
                except (self._psycopg.OperationalError, self._psycopg.InterfaceError):
                    connection.close()
                else:
                    return connection
            connection = self._psycopg.connect(self._url, autocommit=True)
            try:
                _convert_as_sqlite(connection)
                connection.execute(begin)
            except BaseException:
                connection.close()
                raise
            return connection

    def _take_idle(self) -> psycopg.Connection[Any] | None:
        with self._guard:
            return self._idle.pop() if self._idle else None

    def _return_connection(self, connection: psycopg.Connection[Any], closings: int) -> None:
        idle = self._psycopg.pq.TransactionStatus.IDLE
        with self._guard:
            usable = not connection.closed and connection.info.transaction_status == idle
            if usable and closings == self._closings and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.errors.DiskFull as error:
            raise StorageFull(
                "the database has no space left", next_step="Free space, then try again."
            ) from error
        except (self._psycopg.errors.SerializationFailure, self._psycopg.errors.DeadlockDetected) as error:
            raise Unavailable(
                "another transaction changed the same rows",
                next_step="Try again with the same idempotency key.",
            ) from error
        except self._psycopg.errors.UniqueViolation as error:
            raise Conflict(
                "this must be unique, and somebody else was first",
                next_step="Read what is there now, then decide.",
            ) from error
        except self._psycopg.DataError as error:
            raise InvalidInput(
                f"the database cannot hold this value: {str(error).splitlines()[0]}"
            ) from error
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            raise Unavailable(
                f"the database is not reachable: {str(error).splitlines()[0]}",
                next_step="Check that it runs, then try again.",
            ) from error


def _convert_as_sqlite(connection: psycopg.Connection[Any]) -> None:
    """Convert values to the same Python types as SQLite does: truth values are 0 and 1, a sum of integers is an integer.

    PostgreSQL answers ``sum(BIGINT)`` with a ``numeric``, which psycopg would return as a Decimal.
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
