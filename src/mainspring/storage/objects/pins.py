"""Writers delay garbage collection; garbage collection waits for writers.

A writer takes its pin *before* it checks whether a blob is stored already, and keeps it until the reference to that
blob is committed. So a blob that a writer relies on cannot be removed in between (SAFETY O04).

On one machine the pin is a shared file lock: the kernel drops it when the process dies. Over PostgreSQL it is a shared
advisory lock of an open transaction: the server drops it when the connection dies, and the holder notices.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from mainspring.errors import Fenced, MainspringError, Unavailable

_WRITER_WAIT_S = 600.0


class Pins(Protocol):
    """Shared by writers, exclusive to gc. A check raises :class:`Fenced` if the hold was lost meanwhile."""

    def shared(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Hold gc off until the block ends. Yields a check that raises :class:`Fenced` if the pin was lost meanwhile."""
        ...

    def exclusive(self, *, wait_s: float) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Hold everybody else off. Waits up to ``wait_s`` seconds, then raises :class:`Unavailable`."""
        ...


class FilePins:
    """For processes of one machine. All writers of this process share one lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._guard = threading.Lock()
        self._holders = 0
        self._fd = -1
        self._pid = os.getpid()

    @contextlib.contextmanager
    def shared(self) -> Iterator[Callable[[], None]]:
        with self._guard:
            if self._pid != os.getpid():  # after a fork the lock belongs to the parent
                self._holders, self._fd, self._pid = 0, -1, os.getpid()
            if self._holders == 0:
                self._fd = self._lock(fcntl.LOCK_SH, _WRITER_WAIT_S)
            self._holders += 1
        try:
            yield _always_held
        finally:
            with self._guard:
                self._holders -= 1
                if self._holders == 0:
                    os.close(self._fd)
                    self._fd = -1

    @contextlib.contextmanager
    def exclusive(self, *, wait_s: float) -> Iterator[Callable[[], None]]:
        fd = self._lock(fcntl.LOCK_EX, wait_s)
        try:
            yield _always_held
        finally:
            os.close(fd)

    def _lock(self, kind: int, wait_s: float) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise _busy_error(kind == fcntl.LOCK_EX, wait_s, str(self._path)) from None
                time.sleep(0.005)
            except BaseException:
                os.close(fd)
                raise
            else:
                return fd


class _Session(Protocol):
    def query(self, sql: str, values: Sequence[Any]) -> list[dict[str, Any]]: ...


class _Engine(Protocol):
    def reading(self) -> contextlib.AbstractContextManager[Any]: ...


class PostgresPins:
    """For processes that share a PostgreSQL database. The lock lives in a transaction of its own connection.

    A helper thread holds that transaction open, so that the writer's own transactions do not run inside it.
    """

    def __init__(self, engine: _Engine, *, key: int) -> None:
        self._engine = engine
        self._key = key
        self._guard = threading.Lock()
        self._holders = 0
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="mainspring-pin")
        self._open = contextlib.ExitStack()
        self._session: _Session | None = None

    @contextlib.contextmanager
    def shared(self) -> Iterator[Callable[[], None]]:
        with self._guard:
            if self._holders == 0:
                self._helper.submit(
                    self._acquire,
                    "SELECT pg_try_advisory_xact_lock_shared(?) AS ok",
                    _WRITER_WAIT_S,
                    exclusive=False,
                ).result()
            self._holders += 1
        try:
            yield self._check
        finally:
            with self._guard:
                self._holders -= 1
                if self._holders == 0:
                    self._helper.submit(self._release).result()

    @contextlib.contextmanager
    def exclusive(self, *, wait_s: float) -> Iterator[Callable[[], None]]:
        with self._guard:
            if self._holders:
                raise _busy_error(exclusive=True, wait_s=0, place="this process")
            self._helper.submit(
                self._acquire, "SELECT pg_try_advisory_xact_lock(?) AS ok", wait_s, exclusive=True
            ).result()
            try:
                yield self._check
            finally:
                self._helper.submit(self._release).result()

    def _acquire(self, sql: str, wait_s: float, *, exclusive: bool) -> None:
        deadline = time.monotonic() + wait_s
        with contextlib.ExitStack() as opening:
            session: _Session = opening.enter_context(self._engine.reading())
            while not session.query(sql, (self._key,))[0]["ok"]:
                if time.monotonic() >= deadline:
                    raise _busy_error(exclusive, wait_s, "the database")
                time.sleep(0.05)
            self._session, self._open = session, opening.pop_all()

    def _release(self) -> None:
        self._session = None
        with contextlib.suppress(MainspringError):  # a lost connection has dropped the lock already
            self._open.close()

    def _check(self) -> None:
        self._helper.submit(self._check_session).result()

    def _check_session(self) -> None:
        try:
            if self._session is not None:
                self._session.query("SELECT 1 AS alive", ())
                return
        except Exception as error:
            raise _lost_error() from error
        raise _lost_error()


def _always_held() -> None:
    """A file lock cannot be lost while its process lives."""


def _busy_error(exclusive: bool, wait_s: float, place: str) -> Unavailable:
    if exclusive:
        return Unavailable(
            f"objects are being written; waited {wait_s:.0f} s for the writers",
            place=place,
            next_step="Collect garbage again when they are done.",
        )
    return Unavailable(
        f"garbage collection has been running for {wait_s:.0f} s",
        place=place,
        next_step="Try again when it is done.",
    )


def _lost_error() -> Fenced:
    return Fenced(
        "the connection that held off garbage collection was lost",
        next_step="Nothing was committed through it; try again.",
    )
