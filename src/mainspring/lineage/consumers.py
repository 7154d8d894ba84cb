"""The event chain is an outbox: a consumer gets every event of the kinds it takes, in order, at least once (docs/design/consumers.md).

A :class:`Consumer` is a name and a handler. Its cursor is a row of the database and moves after the handler has returned, in a
transaction that checks the fencing token of the lease on the consumer's name: one process of all machines delivers. A process that
dies between handler and cursor delivers again, so a handler that must not act twice compares ``Event.id`` or ``Event.seq``.

    consumers = Consumers(base, [Consumer("mail", send_mail, kinds=frozenset({EventKind.ALERT_OPENED}))])
    with Pump(consumers):  # a thread for each consumer; none without consumers
        ...
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from mainspring.clock import Clock, SystemClock, to_us
from mainspring.errors import Conflict, Corrupt, Fenced
from mainspring.lineage.audit import DAMAGED, event_of, rows_of
from mainspring.lineage.deliveries import count_ahead, read_head
from mainspring.lineage.foundation import Foundation
from mainspring.operations import Principal, Role, acting
from mainspring.records.base import check_name, new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import Event
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.leases import Lease
from mainspring.storage.sql import Writer

log = logging.getLogger("mainspring.lineage.consumers")

declare("consumers.delivered", "consumers.moved")

Handler = Callable[[Sequence[Event]], None]
"""Takes events, oldest first. What it raises is recorded and shown to viewers of the project: no secrets in messages."""

_MAX_ERROR = 1000


class Refused(Exception):
    """Raised by a handler that will never accept this event, however often it is tried. The event is set aside at once."""


@dataclass(frozen=True)
class Consumer:
    """Who receives events. ``kinds`` None: events of every kind, including kinds that only newer programs write.

    ``start``: where a new consumer begins; one that exists continues from its cursor. An event that failed ``attempts`` times is set
    aside; the pause between two attempts doubles from ``backoff_s`` to ``max_backoff_s`` seconds: by default half an hour in all.
    The handler acts as the service ``consumer:<name>`` with ``role`` in the project.
    """

    name: str
    handler: Handler
    kinds: frozenset[EventKind] | None = None
    start: Literal["end", "beginning"] = "end"
    role: Role = Role.VIEWER
    batch: int = 100
    attempts: int = 12
    backoff_s: float = 1.0
    max_backoff_s: float = 900.0


class Consumers:
    """The consumers of one project that this process may run. ``clock`` measures backoff: machine time, not policy time."""

    def __init__(
        self,
        base: Foundation,
        consumers: Iterable[Consumer],
        *,
        clock: Clock | None = None,
        lease_ttl_s: float = 30.0,
    ) -> None:
        self._base = base
        self._clock = clock or SystemClock()
        self._ttl_s = lease_ttl_s
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
        self._by_name: dict[str, Consumer] = {}
        for consumer in consumers:
            check_name(consumer.name, what="consumer")
            if consumer.name in self._by_name:
                raise Conflict("two consumers have the same name", value=consumer.name)
            self._by_name[consumer.name] = consumer
            self._register(consumer)

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    def run_once(self) -> int:
        """Deliver to every consumer what waits for it; returns how many events were delivered. See :meth:`run`."""
        return sum(self.run(name) for name in self._by_name)

    def run(self, name: str, *, stop: Callable[[], bool] = lambda: False) -> int:
        """Deliver to one consumer until nothing waits, an event fails, or ``stop()``; returns how many events it took.

        Nothing happens while another process delivers to it. Raises :class:`Corrupt` if the chain ends before the cursor.
        """
        if self._base.store.in_transaction:
            raise Conflict("events are delivered outside of transactions", value=name)
        consumer = self._by_name[name]
        if not self._has_work(consumer):
            return 0  # checked before the lease is taken: an idle consumer costs no write
        leases = self._base.leases
        try:
            lease = leases.acquire(
                f"consumer:{self._base.project}:{name}", holder=self._holder, ttl_s=self._ttl_s
            )
        except Conflict:
            return 0
        with self._keep_lease(lease) as lost:
            turn = _Turn(self._base, consumer, lease, self._clock)
            try:
                turn.run(lambda: stop() or lost.is_set())
            except Fenced as error:
                log.warning("consumer %s: %s", name, error)
            finally:
                leases.release(lease)
        return turn.delivered

    def _register(self, consumer: Consumer) -> None:
        """Insert the row of a new consumer. One whose kinds have changed receives the new ones from its cursor on."""
        kinds = None if consumer.kinds is None else to_json(sorted(consumer.kinds)).decode()
        project, store = self._base.project, self._base.store
        with store.read() as tx:
            row = tx.first(
                "SELECT kinds FROM consumers WHERE project = ? AND name = ?", project, consumer.name
            )
        if row is not None and row["kinds"] == kinds:
            return
        with store.write() as tx:
            cursor = 0 if consumer.start == "beginning" else read_head(tx, project)
            tx.execute(
                "INSERT INTO consumers (project, name, kinds, cursor, created_us) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (project, name) DO UPDATE SET kinds = excluded.kinds, "
                "attempts = 0, retry_us = 0, failing_us = NULL, error = NULL",
                project, consumer.name, kinds, cursor, to_us(self._clock.now()),
            )  # fmt: skip

    def _has_work(self, consumer: Consumer) -> bool:
        """Whether a turn would do anything. Less than a batch of events of other kinds is no reason to move the cursor: that is a write."""
        project, name = self._base.project, consumer.name
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT cursor, retry_us FROM consumers WHERE project = ? AND name = ?", project, name
            )
            if row is None:  # removed
                return False
            if tx.first(
                "SELECT 1 AS one FROM failed_deliveries WHERE project = ? AND consumer = ? AND again = 1 LIMIT 1",
                project, name,
            ):  # fmt: skip
                return True
            head = read_head(tx, project)
            if head < row["cursor"]:
                raise Corrupt(
                    f"the event chain ends at {head}, before what consumer {name!r} has read",
                    value=row["cursor"],
                    next_step="Events were cut off, or a backup was restored in part: run 'mainspring audit verify'.",
                )
            if head == row["cursor"] or row["retry_us"] > to_us(self._clock.now()):
                return False
            seen, wanted = count_ahead(tx, project, row["cursor"], consumer.kinds, limit=consumer.batch)
            return wanted > 0 or seen >= consumer.batch

    @contextlib.contextmanager
    def _keep_lease(self, lease: Lease) -> Iterator[threading.Event]:
        """Renew the lease while a handler runs, from a thread; the event that this yields is set once the lease is lost."""
        ended, lost = threading.Event(), threading.Event()

        def renew() -> None:
            while not ended.wait(self._ttl_s / 3):
                try:
                    self._base.leases.renew(lease, ttl_s=self._ttl_s)
                except Fenced:
                    lost.set()
                    return
                except Exception as error:  # noqa: BLE001 - a busy database; the token is checked at every write anyway
                    log.warning("the lease on %s was not renewed: %s", lease.name, error)

        thread = threading.Thread(target=renew, name=f"{lease.name} lease", daemon=True)
        thread.start()
        try:
            yield lost
        finally:
            ended.set()
            thread.join()


# --- one turn of one consumer, under its lease -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Position:
    cursor: int
    attempts: int
    retry_us: int


@dataclass(frozen=True)
class _Window:
    """What follows a cursor. ``damaged``: rows that cannot be decoded and may be of a wanted kind."""

    end: int
    wanted: list[Event]
    damaged: list[Event]


class _Turn:
    def __init__(self, base: Foundation, consumer: Consumer, lease: Lease, clock: Clock) -> None:
        self._base = base
        self._consumer = consumer
        self._lease = lease
        self._clock = clock
        self._row = (base.project, consumer.name)
        self._who = Principal(f"consumer:{consumer.name}", {base.project: consumer.role}, kind="service")
        self.delivered = 0

    def run(self, stop: Callable[[], bool]) -> None:
        self._retry_requested(stop)
        single_until = 0
        while not stop():
            position = self._read_position()
            if position.retry_us > to_us(self._clock.now()):
                return
            single = position.attempts > 0 or position.cursor < single_until
            window = self._read_window(position.cursor, 1 if single else self._consumer.batch)
            if window.end == position.cursor:
                return
            error = self._call_handler(window.wanted) if window.wanted else None
            if error is None:
                self._move_cursor(position, window)
            elif len(window.wanted) > 1:  # one event of the batch fails: deliver them one by one to find it
                single_until = window.end
            elif not self._record_failure(position, window, error):
                return

    def _read_position(self) -> _Position:
        with self._base.store.read() as tx:
            row = tx.first(
                "SELECT cursor, attempts, retry_us FROM consumers WHERE project = ? AND name = ?", *self._row
            )
        if row is None:
            raise _removed_error(self._consumer.name)
        return _Position(int(row["cursor"]), int(row["attempts"]), int(row["retry_us"]))

    def _read_window(self, cursor: int, limit: int) -> _Window:
        project, kinds = self._base.project, self._consumer.kinds
        with self._base.store.read() as tx:
            rows = rows_of(
                tx,
                "project = ? AND seq > ? AND seq <= ?",
                [project, cursor, read_head(tx, project)],
                f"ORDER BY seq LIMIT {limit}",
            )
        events = [event_of(row) for row in rows]
        damaged = [e for e in events if e.kind == DAMAGED]
        return _Window(
            end=events[-1].seq if events else cursor,
            wanted=[e for e in events if e.kind != DAMAGED and (kinds is None or e.kind in kinds)],
            damaged=[d for d in damaged if kinds is None or not d.data["was"] or d.data["was"] in kinds],
        )

    def _call_handler(self, events: list[Event]) -> Exception | None:
        """Call the handler with these events; returns what it raised."""
        name = self._consumer.name
        try:
            with acting(self._who):
                self._consumer.handler(events)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is a delivery that failed
            log.warning("consumer %s: event %d: %s: %s", name, events[0].seq, type(error).__name__, error)
            return error
        failpoint("consumers.delivered")
        self.delivered += len(events)
        return None

    def _move_cursor(self, position: _Position, window: _Window) -> None:
        with self._fenced_write() as tx:
            for event in window.damaged:
                self._set_aside(tx, event, 0, str(event.data["reason"]))
            self._write_cursor(tx, position, window.end, delivered=bool(window.wanted))
        failpoint("consumers.moved")

    def _record_failure(self, position: _Position, window: _Window, error: Exception) -> bool:
        """Record that the only wanted event of the window failed. Returns whether it was set aside, so that the next one can be tried."""
        event, attempts = window.wanted[0], position.attempts + 1
        final = isinstance(error, Refused) or attempts >= self._consumer.attempts
        pause = min(self._consumer.backoff_s * 2.0 ** min(attempts - 1, 60), self._consumer.max_backoff_s)
        now = to_us(self._clock.now())
        with self._fenced_write() as tx:
            for damaged in window.damaged:
                if damaged.seq < event.seq:
                    self._set_aside(tx, damaged, 0, str(damaged.data["reason"]))
            if final:
                self._set_aside(tx, event, attempts, _describe_error(error))
            self._write_cursor(tx, position, event.seq if final else event.seq - 1)
            tx.execute(
                "UPDATE consumers SET attempts = ?, retry_us = ?, error = ?, failing_us = coalesce(failing_us, ?) "
                "WHERE project = ? AND name = ?",
                0 if final else attempts, 0 if final else now + int(pause * 1e6), _describe_error(error), now, *self._row,
            )  # fmt: skip
        return final

    def _retry_requested(self, stop: Callable[[], bool]) -> None:
        """One attempt for each event that was marked for redelivery, up to a batch, ending with the first that fails."""
        with self._base.store.read() as tx:
            requested = tx.all(
                "SELECT seq FROM failed_deliveries WHERE project = ? AND consumer = ? AND again = 1 ORDER BY seq LIMIT ?",
                *self._row, self._consumer.batch,
            )  # fmt: skip
        for seq in (int(row["seq"]) for row in requested):
            if stop():
                return
            error = self._retry_event(seq)
            with self._fenced_write() as tx:
                if error is None:
                    tx.execute(
                        "DELETE FROM failed_deliveries WHERE project = ? AND consumer = ? AND seq = ?", *self._row, seq
                    )  # fmt: skip
                    continue
                tx.execute(
                    "UPDATE failed_deliveries SET again = 0, attempts = attempts + 1, error = ?, at_us = ? "
                    "WHERE project = ? AND consumer = ? AND seq = ?",
                    error, to_us(self._clock.now()), *self._row, seq,
                )  # fmt: skip
                return

    def _retry_event(self, seq: int) -> str | None:
        with self._base.store.read() as tx:
            rows = rows_of(tx, "project = ? AND seq = ?", [self._base.project, seq], "")
        if not rows:
            return "the event is missing: run 'mainspring audit verify'"
        event = event_of(rows[0])
        if event.kind == DAMAGED:
            return str(event.data["reason"])
        error = self._call_handler([event])
        return None if error is None else _describe_error(error)

    # --- writing -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _fenced_write(self) -> Iterator[Writer]:
        # The token is checked in the transaction that writes: a process that lost its lease while its handler ran cannot write.
        with self._base.store.write() as tx:
            self._base.leases.check(tx, self._lease)
            yield tx

    def _write_cursor(self, tx: Writer, position: _Position, cursor: int, *, delivered: bool = False) -> None:
        """Move the cursor; a delivery also clears the record of earlier failures."""
        cleared = (
            ", attempts = 0, retry_us = 0, failing_us = NULL, error = NULL, moved_us = ?" if delivered else ""
        )
        # The old cursor is a condition: a consumer that was removed and registered again meanwhile is left alone.
        if not tx.execute(
            f"UPDATE consumers SET cursor = ?{cleared} WHERE project = ? AND name = ? AND cursor = ?",
            cursor, *([to_us(self._clock.now())] if delivered else []), *self._row, position.cursor,
        ):  # fmt: skip
            raise _removed_error(self._consumer.name)

    def _set_aside(self, tx: Writer, event: Event, attempts: int, error: str) -> None:
        tx.execute(
            "INSERT INTO failed_deliveries (project, consumer, seq, event, kind, attempts, error, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (project, consumer, seq) DO UPDATE SET attempts = excluded.attempts, error = excluded.error, at_us = excluded.at_us",
            *self._row, event.seq, event.id, str(event.data.get("was", "")) if event.kind == DAMAGED else event.kind,
            attempts, error, to_us(self._clock.now()),
        )  # fmt: skip


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR]


def _removed_error(name: str) -> Fenced:
    return Fenced("the consumer was removed or registered again meanwhile", value=name)


# --- in the background -------------------------------------------------------------------------------------------------


class Pump:
    """A thread for each consumer: a slow target delays only its own consumer. Each checks for work every ``every_s`` seconds, or when woken."""

    def __init__(self, consumers: Consumers, *, every_s: float = 1.0) -> None:
        self._consumers = consumers
        self._every_s = every_s
        self._stop = threading.Event()
        self._woken = {name: threading.Event() for name in consumers.names}
        self._threads = [
            threading.Thread(target=self._run_consumer, args=(name,), name=f"consumer {name}", daemon=True)
            for name in consumers.names
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wake(self) -> None:
        """Check for work now: an event was recorded."""
        for woken in self._woken.values():
            woken.set()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Stop after the handler calls that run now, waiting ``timeout_s`` seconds for each; an unfinished one is delivered again later."""
        self._stop.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout_s)

    def _run_consumer(self, name: str) -> None:
        woken = self._woken[name]
        while not self._stop.is_set():
            woken.clear()
            pause = self._every_s
            try:
                self._consumers.run(name, stop=self._stop.is_set)
            except Exception:
                log.exception("consumer %s: this turn ended early", name)
                pause *= 10  # the database may be unreachable
            woken.wait(pause)
