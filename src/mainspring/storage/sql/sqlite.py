"""SQLite, shared by several processes, one writer at a time.

SQLite before 3.51.3 can corrupt a database when two connections write or checkpoint at once (the WAL-reset race), and
Debian 12 ships 3.40.1. So one OS lock is held around every write transaction, every checkpoint and every close;
``wal_autocheckpoint`` is off, writes start with ``BEGIN IMMEDIATE``, ``synchronous`` is FULL. Readers never wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from mainspring.errors import Conflict, Corrupt, MainspringError, StorageFull, Unavailable
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.reserve import Reserve
from mainspring.storage.sql.store import Row, Session, Value

declare("sql.locked", "sql.before_commit", "sql.after_commit", "sql.before_checkpoint")

_LOCK_TIMEOUT_S = 60.0
_BUSY_MS = 30_000
_QUEUE_POLL_S, _LOCK_POLL_S = 0.004, 0.0003
"""Mean seconds between two attempts to take the queue, and, for the first in the queue, between two attempts to take the lock."""
_POLL_GROWTH = 20.0
"""The rate of attempts grows by this factor per second of waiting, so that the longest waiter is the most likely to succeed."""
_TURN_S = 0.05
"""Seconds after its turn in which a process may take the lock without queueing."""
_CHECKPOINT_BYTES = 4 << 20


class WriteLock:
    """The workspace's one write lock: a file lock between processes, a thread lock within this one.

    A process takes the queue first, a second file lock, and releases it once it holds the lock. So a process that writes without
    pause cannot overtake those that wait, and only the first in the queue polls often. For a short time after its turn a process
    may take the lock without queueing, while the next one wakes up: otherwise the lock would be idle between any two writes.

    Order of locking: thread lock, queue, file lock. ``flock`` and not ``fcntl`` locks, since those end when any descriptor of the
    file in the process is closed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._thread = threading.RLock()
        self._depth = 0
        self._fd = -1
        self._queue = -1
        self._turn_ends = 0.0

    def __enter__(self) -> Self:
        if not self._thread.acquire(timeout=_LOCK_TIMEOUT_S):
            raise self._busy()
        try:
            if self._depth == 0:
                self._lock_file()
            self._depth += 1
        except BaseException:
            self._thread.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._thread.release()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._queue)
            self._fd = self._queue = -1

    def _lock_file(self) -> None:
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._queue = os.open(self._path.with_suffix(".queue"), flags, 0o600)
            self._fd = os.open(self._path, flags, 0o600)
        began = time.monotonic()
        if began < self._turn_ends and _try_lock(self._fd):
            return
        self._take(self._queue, began, pause=_QUEUE_POLL_S, grow=_POLL_GROWTH)
        try:
            self._take(self._fd, began, pause=_LOCK_POLL_S)
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)
        self._turn_ends = time.monotonic() + _TURN_S

    def _take(self, fd: int, began: float, *, pause: float, grow: float = 0.0) -> None:
        """Try until the lock is taken. Attempts become more frequent with waiting (``grow``); random pauses keep waiters out of step."""
        while not _try_lock(fd):
            waited = time.monotonic() - began
            if waited > _LOCK_TIMEOUT_S:
                raise self._busy()
            time.sleep(2 * random.random() * max(pause / (1 + grow * waited), _LOCK_POLL_S))  # noqa: S311 - no secret

    def _busy(self) -> Unavailable:
        return Unavailable(
            f"another process has been writing for {_LOCK_TIMEOUT_S:.0f} seconds",
            place=str(self._path),
            next_step="Try again; 'mainspring doctor' names the holder.",
        )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Session:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def query(self, sql: str, values: Sequence[Value]) -> list[Row]:
        cursor = self._connection.execute(sql, values)
        names = [d[0] for d in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def execute(self, sql: str, values: Sequence[Value]) -> int:
        return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        self._connection.executemany(sql, rows)


class SqliteEngine:
    """One writing connection per process and a pool of reading connections, which grows to the largest number of concurrent reads."""

    name = "sqlite"

    def __init__(self, path: Path, *, lock: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._lock = WriteLock(lock)
        self._reserve = Reserve(path.with_name("reserve"))
        # The log may be half of the reserved space, so that a full disk has room for a checkpoint.
        self._log_bytes = min(_CHECKPOINT_BYTES, self._reserve.wanted // 2)
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closings = 0  # counts close() calls: a reader taken before one is not returned to the pool
        self._writer: sqlite3.Connection | None = None
        self.on_write_failure: Callable[[MainspringError], None] = lambda _: None
        """Called when a commit's outcome is unknown (a failed fsync). The server and the runner end the process."""

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        # A connection per transaction, not per thread: threads are short-lived, and a thread may open a second read inside a stream.
        connection, closings = self._take_reader()
        try:
            with _translate_errors(self._path):
                connection.execute("BEGIN")
                try:
                    yield _Session(connection)
                finally:
                    connection.rollback()
        finally:
            with self._guard:
                reusable = closings == self._closings
                if reusable:
                    self._idle.append(connection)
            if not reusable:
                with self._lock:
                    connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        with self._lock:
            failpoint("sql.locked")
            with _translate_errors(self._path, self.on_write_failure):
                connection = self._writing_connection()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield _Session(connection)
                    failpoint("sql.before_commit")
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                failpoint("sql.after_commit")
                self._checkpoint(connection, above=self._log_bytes)

    @contextlib.contextmanager
    def migrating(self) -> Iterator[Session]:
        with self._lock:
            with self.writing() as session:
                yield session
            # A new schema is 600 KB: move it from the log into the database file at once.
            self._checkpoint(self._writing_connection(), above=0)

    def keep_back(self, extra: int) -> None:
        self._reserve.make(extra)

    @contextlib.contextmanager
    def freeing(self) -> Iterator[None]:
        if self._reserve.has_room():
            yield
            return
        self._reserve.release()
        try:
            self._shrink_log()
            yield
        finally:
            self._shrink_log()
            self._reserve.make()

    def _shrink_log(self) -> None:
        """Checkpoint, so that the space of the log is free for the next transaction.

        A long log (a reader has delayed checkpoints) is left: the database could grow by more than the free space.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._path.with_name(self._path.name + "-wal").stat().st_size > self._log_bytes:
                return
        with self._lock, contextlib.suppress(MainspringError), _translate_errors(self._path):
            self._checkpoint(self._writing_connection(), above=0)

    def close(self) -> None:
        if os.getpid() != self._pid:  # a forked child must not touch its parent's connections
            return
        with self._lock:  # closing the last connection checkpoints, which needs the write lock
            with self._guard:
                idle, self._idle = self._idle, []
                self._closings += 1
            for connection in idle:
                connection.close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
                self._reserve.make()
        self._lock.close()

    def _checkpoint(self, connection: sqlite3.Connection, *, above: int) -> None:
        wal = self._path.with_name(self._path.name + "-wal")
        try:
            if wal.stat().st_size <= above:
                return
        except FileNotFoundError:
            return
        failpoint("sql.before_checkpoint")
        # Do not wait for readers here: the write lock is held, so every writer of every process would wait too. The next write retries.
        connection.execute("PRAGMA busy_timeout=0").fetchall()
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as error:
            if _primary_code(error) == sqlite3.SQLITE_IOERR and not _is_full(error):
                raise
            # A full disk or a busy reader: the transaction is committed, and its pages stay in the log until a later checkpoint.
        finally:
            connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}").fetchall()

    def _writing_connection(self) -> sqlite3.Connection:
        self._check_process()
        if self._writer is None:
            self._writer = self._open_connection("PRAGMA journal_mode=WAL")
        return self._writer

    def _take_reader(self) -> tuple[sqlite3.Connection, int]:
        self._check_process()
        with self._guard:
            closings = self._closings
            if self._idle:
                return self._idle.pop(), closings
        with self._lock:  # opening may have to recover the log, which writes
            connection = self._open_connection("SELECT count(*) FROM sqlite_master")
            connection.execute("PRAGMA query_only=ON")
        return connection, closings

    def _open_connection(self, first: str) -> sqlite3.Connection:
        """A connection that has run its ``first`` statement, which opens the log; on a full disk it uses a part of the reserve."""
        while True:
            try:
                return self._connect(first)
            except sqlite3.OperationalError as error:
                if not _is_full(error) or not self._reserve.lend():
                    raise

    def _connect(self, first: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000
        )
        try:
            connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute(first).fetchall()
        except BaseException:
            connection.close()
            raise
        self._path.chmod(0o600)
        return connection

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise Unavailable(
                "this workspace was opened before a fork",
                next_step="Open it again in the child process: mainspring.open(...).",
            )


_FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN})
"""On a full disk SQLite may fail to create the shared memory of the log, which it reports as an I/O error."""
_NOT_UNIQUE = frozenset(
    {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID}
)


def _is_full(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode in _FULL


def _primary_code(error: sqlite3.Error) -> int:
    """The primary result code: the low byte of the extended one (https://sqlite.org/rescode.html)."""
    return error.sqlite_errorcode & 0xFF


@contextlib.contextmanager
def _translate_errors(
    path: Path, on_write_failure: Callable[[MainspringError], None] | None = None
) -> Iterator[None]:
    """Translate SQLite's errors to ours. A violated unique constraint means that another writer was first."""
    try:
        yield
    except sqlite3.Error as error:
        translated = _translate(error, path)
        if translated is None:
            raise
        if _primary_code(error) == sqlite3.SQLITE_IOERR and on_write_failure is not None:
            on_write_failure(translated)
        raise translated from error


def _translate(error: sqlite3.Error, path: Path) -> MainspringError | None:
    """Our error for SQLite's result code; None for codes without one (a mistake in our SQL)."""
    if getattr(error, "sqlite_errorcode", None) is None:  # raised by the Python module, not by SQLite
        return None
    if _is_full(error):
        return StorageFull(
            "no space left for metadata",
            place=str(path),
            next_step="Free space, then try again; 'mainspring gc' works on a full disk.",
        )
    match _primary_code(error):
        case sqlite3.SQLITE_IOERR:
            return Corrupt(
                f"the database could not be written: {error}",
                place=str(path),
                next_step="The outcome is unknown until restart; retry with the same idempotency key.",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(str(error), place=str(path), next_step="Restore from a backup.")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(
                "another process keeps the database busy", place=str(path), next_step="Try again."
            )
        case sqlite3.SQLITE_CONSTRAINT if error.sqlite_errorcode in _NOT_UNIQUE:
            return Conflict(
                "this must be unique, and somebody else was first",
                next_step="Read what is there now, then decide.",
            )
    return None
