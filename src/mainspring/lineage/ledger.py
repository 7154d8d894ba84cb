"""One transaction per decision.

What changes, the event that says so (hash-chained, naming actor and operation), the lineage edges and the answer to the
idempotency key commit together or not at all. An audit row *is* an event with its actor: there is one chain per
project, not two that could disagree (docs/design/ledger.md).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import blake3

from mainspring.clock import Clock, from_us, to_us
from mainspring.errors import Conflict, KeyTaken
from mainspring.operations import Invocation, Settlement, current
from mainspring.records.base import from_json, new_id, to_json
from mainspring.records.lineage import AuditReport, Event
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql import Reader, Row, Store, Writer

T = TypeVar("T")

GENESIS = "0" * 64

declare("ledger.event", "ledger.done")


class Decision:
    """An open decision: its transaction, and what will be recorded with it."""

    def __init__(
        self, tx: Writer, *, project: str, clock: Clock, invocation: Invocation | None, outermost: bool
    ) -> None:
        self.tx = tx
        self._project = project
        self._clock = clock
        self._invocation = invocation
        self._outermost = outermost

    def event(self, kind: str, subject: str, data: dict[str, Any] | None = None) -> Event:
        """Append an event to the chain. ``kind`` is ``thing.verb_in_past``, ``subject`` a reference."""
        tx, project = self.tx, self._project
        # Taking the head by an update locks the row on PostgreSQL: appends to one chain are serial on every engine.
        tx.execute(
            "INSERT INTO chain_heads (project, seq, hash) VALUES (?, 0, ?) ON CONFLICT (project) DO NOTHING",
            project,
            GENESIS,
        )
        head = tx.all("UPDATE chain_heads SET seq = seq + 1 WHERE project = ? RETURNING seq, hash", project)[
            0
        ]
        event = Event(
            seq=int(head["seq"]),
            id=new_id(),
            at=self._clock.now(),
            wall=from_us(time.time_ns() // 1000),
            kind=kind,
            subject=subject,
            actor=self._invocation.actor if self._invocation else "local",
            operation=self._invocation.operation if self._invocation else "",
            data=data or {},
            prev=str(head["hash"]),
            hash="",
        )
        digest = chain_hash(project, event)
        tx.execute(
            "INSERT INTO events (project, seq, id, at_us, wall_us, kind, subject, actor, operation, data, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            project, event.seq, event.id, to_us(event.at), to_us(event.wall), kind, subject, event.actor, event.operation,
            to_json(event.data).decode(), event.prev, digest,
        )  # fmt: skip
        failpoint("ledger.event")
        tx.execute("UPDATE chain_heads SET hash = ? WHERE project = ?", digest, project)
        return _with_hash(event, digest)

    def edge(self, source: str, target: str, kind: str) -> None:
        """Record that ``source`` led to ``target``; recording it again changes nothing."""
        self.tx.execute(
            "INSERT INTO edges (project, source, target, kind, at_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT (project, source, target, kind) DO NOTHING",
            self._project, source, target, kind, to_us(self._clock.now()),
        )  # fmt: skip

    def refer(self, digest: str, owner: str, *, tree: bool = False) -> None:
        """``owner`` needs the object ``digest``: gc keeps it (and what it refers to) while the reference stands.

        From now on the project may read the object, so its digest comes from a writer of this process or has been checked
        (``lineage.uploads``: :func:`check_owned`, :func:`owned_tree`). ``tree``: it is a tree, and the same holds for its files.
        """
        self.tx.execute(
            "INSERT INTO object_refs (digest, owner, project, tree) VALUES (?, ?, ?, ?) ON CONFLICT (digest, project, owner) "
            "DO UPDATE SET tree = CASE WHEN excluded.tree = 1 THEN 1 ELSE object_refs.tree END",
            digest, owner, self._project, int(tree),
        )  # fmt: skip

    def unrefer(self, owner: str) -> None:
        """``owner`` is gone: drop all its object references."""
        self.tx.execute("DELETE FROM object_refs WHERE project = ? AND owner = ?", self._project, owner)

    def done(self, result: T) -> T:
        """End the decision with its result, remembered under the caller's idempotency key. Returns ``result``.

        Raises :class:`KeyTaken`, and nothing of this decision stays, if another call with this key was first.
        """
        call = self._invocation
        if self._outermost and call is not None and call.key is not None:
            answer = to_json(result)
            _remember(
                self.tx, self._project, call.key, call.operation, call.arguments, answer, call.settlement
            )
            failpoint("ledger.done")
        return result


class Ledger:
    """Decisions and the event chain of one project."""

    def __init__(self, store: Store, *, project: str, clock: Clock) -> None:
        self._store = store
        self._project = project
        self._clock = clock

    @contextlib.contextmanager
    def decision(self) -> Iterator[Decision]:
        """Open a decision; within another one of this thread, a part of that one."""
        outermost = not self._store.in_transaction
        with self._store.write() as tx:
            yield Decision(
                tx, project=self._project, clock=self._clock, invocation=current(), outermost=outermost
            )

    def replay(self, *, key: str, operation: str, arguments: dict[str, Any]) -> bytes | None:
        """The JSON result of an earlier call with this idempotency key, or None.

        Raises :class:`Conflict` if the key was used for another operation or other arguments.
        """
        with self._store.read() as tx:
            row = tx.first(
                "SELECT operation, arguments, result FROM idempotency WHERE project = ? AND key = ?",
                self._project,
                key,
            )
        if row is None:
            return None
        if row["operation"] != operation or row["arguments"] != arguments_digest(arguments):
            raise Conflict(
                "this idempotency key was used for another call",
                value=key,
                next_step="Use a fresh key for each new call; repeat a key only to retry.",
            )
        return str(row["result"]).encode()

    def settle(
        self, *, key: str, operation: str, arguments: dict[str, Any], answer: bytes, settlement: Settlement
    ) -> None:
        """Remember the final answer to a call, unless one of its decisions has: operations of several decisions, or of none.

        Raises :class:`KeyTaken` if another call with this key was first.
        """
        if settlement.answer == answer:
            return
        with self._store.write() as tx:
            _remember(tx, self._project, key, operation, arguments, answer, settlement)

    def verify(self, *, anchor: tuple[int, str] | None = None) -> AuditReport:
        """Walk the whole chain. ``anchor`` is an earlier ``(seq, hash)`` kept elsewhere: it catches truncation."""
        expected, previous = 1, GENESIS
        anchored = anchor is None or anchor[0] == 0
        with self._store.read() as tx:
            head = tx.first("SELECT seq, hash FROM chain_heads WHERE project = ?", self._project)
            for row in _all_events(tx, self._project):
                reason = None
                if row["seq"] != expected:
                    reason = f"sequence number {expected} is missing"
                elif row["prev"] != previous or _row_hash(self._project, row) != row["hash"]:
                    reason = "the row does not match its hash"
                if reason:
                    return AuditReport(
                        ok=False, events=expected - 1, head=previous, first_bad=expected, reason=reason
                    )
                anchored = anchored or anchor == (row["seq"], row["hash"])
                previous, expected = str(row["hash"]), expected + 1
        count = expected - 1
        if (head["seq"], head["hash"]) != (count, previous) if head is not None else count:
            return AuditReport(
                ok=False,
                events=count,
                head=previous,
                first_bad=expected,
                reason="events are missing at the end"
                if head is not None
                else "the head of the chain is missing",
            )
        if not anchored:
            return AuditReport(
                ok=False,
                events=count,
                head=previous,
                first_bad=anchor[0] if anchor else None,
                reason="the anchored event is missing or changed",
            )
        return AuditReport(ok=True, events=count, head=previous)


def _remember(
    tx: Writer,
    project: str,
    key: str,
    operation: str,
    arguments: dict[str, Any],
    answer: bytes,
    settlement: Settlement,
) -> None:
    digest, now = arguments_digest(arguments), time.time_ns() // 1000
    # The same call again (an operation of several decisions): the last answer is the answer.
    if settlement.answer is not None and tx.execute(
        "UPDATE idempotency SET result = ?, at_us = ? WHERE project = ? AND key = ?",
        answer.decode(), now, project, key,
    ):  # fmt: skip
        settlement.answer = answer
        return
    if not tx.execute(
        "INSERT INTO idempotency (project, key, operation, arguments, result, at_us) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (project, key) DO NOTHING",
        project, key, operation, digest, answer.decode(), now,
    ):  # fmt: skip
        raise KeyTaken(
            "another call with this idempotency key was first",
            value=key,
            next_step="Repeat the call with the same key: it answers what the first one did.",
        )
    settlement.answer = answer


def arguments_digest(arguments: dict[str, Any]) -> str:
    return blake3.blake3(to_json(arguments)).hexdigest()


def chain_hash(project: str, event: Event) -> str:
    """BLAKE3 over the canonical JSON of every field but the hash itself; ``prev`` makes it a chain."""
    return _row_hash(
        project,
        {
            "seq": event.seq, "id": event.id, "at_us": to_us(event.at), "wall_us": to_us(event.wall), "kind": event.kind,
            "subject": event.subject, "actor": event.actor, "operation": event.operation,
            "data": to_json(event.data).decode(), "prev": event.prev,
        },
    )  # fmt: skip


def _row_hash(project: str, row: Row) -> str:
    # Over the stored text of ``data``, not over what it decodes to: a row fits or not, whatever a decoder makes of it.
    names = ("seq", "id", "at_us", "wall_us", "kind", "subject", "actor", "operation", "data", "prev")
    try:
        return blake3.blake3(to_json([project, *(row[name] for name in names)])).hexdigest()
    except (TypeError, ValueError, OverflowError):  # a value of a type that no event has
        return ""


def event_of(row: Row) -> Event:
    return Event(
        seq=int(row["seq"]),
        id=row["id"],
        at=from_us(row["at_us"]),
        wall=from_us(row["wall_us"]),
        kind=row["kind"],
        subject=row["subject"],
        actor=row["actor"],
        operation=row["operation"],
        data=from_json(row["data"]),
        prev=row["prev"],
        hash=row["hash"],
    )


def _with_hash(event: Event, digest: str) -> Event:
    import msgspec

    return msgspec.structs.replace(event, hash=digest)


def _all_events(tx: Reader, project: str, batch: int = 2000) -> Iterator[Row]:
    last = -(1 << 63)  # a row slipped in before the first is seen too
    while rows := tx.all(
        "SELECT * FROM events WHERE project = ? AND seq > ? ORDER BY seq LIMIT ?", project, last, batch
    ):
        yield from rows
        last = rows[-1]["seq"]
