"""Transactions: the one way to read and write metadata, whatever the engine.

SQL is written once, in the dialect that SQLite (3.35 or newer) and PostgreSQL share: ``?`` placeholders, ``INSERT ..
ON CONFLICT .. DO UPDATE``, ``RETURNING``, types ``TEXT``, ``BIGINT``, ``DOUBLE PRECISION`` and ``BYTEA``. Rows are
plain dictionaries. NaN does not survive in SQLite: store such numbers with :mod:`mainspring.storage.sql.numbers`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from mainspring.errors import NotFound

Row = dict[str, Any]
Value = str | int | float | bytes | None


class Session(Protocol):
    """One open transaction of an engine."""

    def query(self, sql: str, values: Sequence[Value]) -> list[Row]:
        """Run a statement that returns rows; each row is a dict by column name."""
        ...

    def execute(self, sql: str, values: Sequence[Value]) -> int:
        """Run a statement; returns the number of rows it changed."""
        ...

    def many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement for many rows of values."""
        ...


class Engine(Protocol):
    """A SQL engine: three kinds of transaction and an end. Safe to use from many threads."""

    name: str

    def reading(self) -> contextlib.AbstractContextManager[Session]:
        """A read-only snapshot."""
        ...

    def writing(self) -> contextlib.AbstractContextManager[Session]:
        """A write transaction: commits at a clean exit, rolls back at an exception.

        SQLite: holds the workspace's write lock, so it is the only writer of all processes. PostgreSQL: read
        committed; code that needs mutual exclusion takes a row lock or updates with the expected value in WHERE.
        """
        ...

    def migrating(self) -> contextlib.AbstractContextManager[Session]:
        """Like :meth:`writing`, and exclusive on every engine."""
        ...

    def keep_back(self, extra: int) -> None:
        """Reserve space on the workspace's disk if there is enough, ``extra`` bytes more than usual."""
        ...

    def freeing(self) -> contextlib.AbstractContextManager[None]:
        """A block that frees space; on a full disk it may use the reserved space."""
        ...

    def close(self) -> None:
        """Close all connections. Idempotent."""
        ...


class Reader:
    """Reads inside one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def all(self, sql: str, *values: Value) -> list[Row]:
        """All rows, as dictionaries by column name. Loads them at once: page with LIMIT where there may be many."""
        return self._session.query(sql, values)

    def first(self, sql: str, *values: Value) -> Row | None:
        """The first row, or None."""
        rows = self._session.query(sql, values)
        return rows[0] if rows else None

    def one(self, sql: str, *values: Value, what: str) -> Row:
        """The first row. Raises :class:`NotFound` with ``what`` as the name of the missing thing."""
        row = self.first(sql, *values)
        if row is None:
            raise NotFound(f"{what} does not exist")
        return row

    def scalar(self, sql: str, *values: Value) -> Any:
        """The first column of the first row; None without a row."""
        row = self.first(sql, *values)
        return next(iter(row.values())) if row else None


class Writer(Reader):
    """Reads and writes inside one transaction."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._before_commit: list[Callable[[], None]] = []

    def execute(self, sql: str, *values: Value) -> int:
        """Run a statement; returns the number of rows it changed."""
        return self._session.execute(sql, values)

    def many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement for many rows of values."""
        self._session.many(sql, rows)

    def before_commit(self, action: Callable[[], None]) -> None:
        """Run ``action`` in this transaction just before it commits."""
        self._before_commit.append(action)

    def run_before_commit(self) -> None:
        """Run the actions of :meth:`before_commit` in their order; :meth:`Store.write` calls it once, at a clean end."""
        for action in self._before_commit:
            action()


class Store:
    """Metadata behind transactions. Nested uses in one thread join the outermost transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._local = threading.local()

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A read-only snapshot; inside a write transaction of this thread, that transaction."""
        outer: Reader | None = getattr(self._local, "transaction", None)
        if outer is not None:
            yield outer
            return
        with self.engine.reading() as session:
            yield Reader(session)

    @contextlib.contextmanager
    def write(self) -> Iterator[Writer]:
        """A write transaction; commits when the outermost block ends without an exception."""
        outer: Writer | None = getattr(self._local, "transaction", None)
        if outer is not None:
            yield outer
            return
        with self.engine.writing() as session:
            writer = Writer(session)
            self._local.transaction = writer
            try:
                yield writer
                writer.run_before_commit()
            finally:
                self._local.transaction = None

    def freeing(self) -> contextlib.AbstractContextManager[None]:
        """A block that frees space; on a full disk it may use the reserved space. Not inside a transaction."""
        return self.engine.freeing()

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside a write transaction."""
        return getattr(self._local, "transaction", None) is not None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.engine.close()
