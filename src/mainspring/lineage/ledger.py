"""One transaction per decision.

What changes, the event that records it (hash-chained, with actor and operation), the lineage edges and the answer to the
idempotency key commit together or not at all. An audit row *is* an event with its actor: there is one chain per
project, not two that could disagree (docs/design/ledger.md).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import blake3
import msgspec

from mainspring.clock import Clock, from_us, to_us
from mainspring.errors import Conflict, KeyTaken
from mainspring.lineage import audit
from mainspring.lineage.audit import EDGES, GENESIS, event_of, row_hash
from mainspring.observation import observer
from mainspring.operations import Invocation, Settlement, current
from mainspring.records.base import new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import AuditReport, EdgeReport, Event
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.sql import Store, Writer

__all__ = ["GENESIS", "Decision", "Ledger", "event_of"]

T = TypeVar("T")

declare("ledger.event", "ledger.done")


class _Trace:
    """What one transaction has recorded so far in one project: the new edges, and the last event, which will name them."""

    def __init__(self) -> None:
        self.edges: list[tuple[str, str, str]] = []
        self.last: Event | None = None


_traces: WeakKeyDictionary[Writer, dict[str, _Trace]] = WeakKeyDictionary()
"""By transaction, then project: decisions within one another share a transaction, and so what it has recorded."""


class Decision:
    """An open decision: its transaction, and what will be recorded with it."""

    def __init__(
        self,
        tx: Writer,
        *,
        project: str,
        clock: Clock,
        invocation: Invocation | None,
        outermost: bool,
        trace: _Trace,
    ) -> None:
        self.tx = tx
        self._trace = trace
        self._project = project
        self._clock = clock
        self._invocation = invocation
        self._outermost = outermost

    def event(self, kind: EventKind, subject: str, data: dict[str, Any] | None = None) -> Event:
        """Append an event to the chain, about the reference ``subject``. Raises ValueError for a kind that is not declared."""
        tx, project = self.tx, self._project
        # The head is read by an UPDATE, which locks its row on PostgreSQL until the commit: appends to one chain never run at the same time.
        # Two that read it by a SELECT would both follow the same event.
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
            kind=EventKind(kind).value,  # a plain string: drivers would store a member in their own ways
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
            project, event.seq, event.id, to_us(event.at), to_us(event.wall), event.kind, subject, event.actor, event.operation,
            to_json(event.data).decode(), event.prev, digest,
        )  # fmt: skip
        failpoint("ledger.event")
        tx.execute("UPDATE chain_heads SET hash = ? WHERE project = ?", digest, project)
        self._trace.last = msgspec.structs.replace(event, hash=digest)
        return self._trace.last

    def edge(self, source: str, target: str, kind: str) -> None:
        """Record that ``source`` led to ``target``; recording it again changes nothing.

        The last event of the transaction names the edge, so that an audit finds edges that were forged or removed.
        """
        if self.tx.execute(
            "INSERT INTO edges (project, source, target, kind, at_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT (project, source, target, kind) DO NOTHING",
            self._project, source, target, kind, to_us(self._clock.now()),
        ):  # fmt: skip
            if not self._trace.edges:
                self.tx.before_commit(self._name_edges)
            self._trace.edges.append((source, target, kind))

    def _name_edges(self) -> None:
        """Write the transaction's new edges into its last event: nothing of it is committed yet."""
        tx, project, trace = self.tx, self._project, self._trace
        audit.seal_edges_of_version_1(
            tx, project, trace.edges, lambda kind, data: self.event(kind, f"project:{project}", data)
        )
        if trace.last is None:
            self.event(EventKind.LINEAGE_RECORDED, trace.edges[0][1])
        assert trace.last is not None  # noqa: S101 - event() has just set it
        named = [list(edge) for edge in trace.edges]
        event = msgspec.structs.replace(trace.last, data={**trace.last.data, EDGES: named}, hash="")
        digest = chain_hash(project, event)
        tx.execute(
            "UPDATE events SET data = ?, hash = ? WHERE project = ? AND seq = ?",
            to_json(event.data).decode(),
            digest,
            project,
            event.seq,
        )
        tx.execute("UPDATE chain_heads SET hash = ? WHERE project = ?", digest, project)
        tx.many(
            "UPDATE edges SET event = ? WHERE project = ? AND source = ? AND target = ? AND kind = ?",
            [(event.seq, project, *edge) for edge in trace.edges],
        )
        trace.edges, trace.last = [], None

    def refer(self, digest: str, owner: str, *, tree: bool = False) -> None:
        """``owner`` needs the object ``digest``: garbage collection keeps it (and what it refers to) until :meth:`unrefer`.

        From now on the project may read the object, so the digest must come from a writer of this process or must have been checked
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
        """End the decision with its result, which is stored under the caller's idempotency key. Returns ``result``.

        Raises :class:`KeyTaken`, which rolls this decision back, if another call with this key was first.
        """
        call = self._invocation
        observe = observer()
        if observe is not None and call is not None:
            observe(call.operation, call.arguments, result)
        if self._outermost and call is not None and call.key is not None:
            answer = to_json(result)
            _store_answer(
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

    @property
    def project(self) -> str:
        return self._project

    @contextlib.contextmanager
    def decision(self) -> Iterator[Decision]:
        """Open a decision; within another decision of this thread it is a part of that one and commits with it."""
        outermost = not self._store.in_transaction
        with self._store.write() as tx:
            yield Decision(
                tx,
                project=self._project,
                clock=self._clock,
                invocation=current(),
                outermost=outermost,
                trace=_traces.setdefault(tx, {}).setdefault(self._project, _Trace()),
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
        """Store the final answer to a call, unless one of its decisions has: for operations with several decisions, or with none.

        Raises :class:`KeyTaken` if another call with this key was first.
        """
        if settlement.answer == answer:
            return
        with self._store.write() as tx:
            _store_answer(tx, self._project, key, operation, arguments, answer, settlement)

    def verify(self, *, anchor: tuple[int, str] | None = None) -> AuditReport:
        """Check the whole chain, and the edges against it. ``anchor``: see :func:`mainspring.lineage.audit.verify_chain`."""
        with self._store.read() as tx:
            return audit.verify_chain(tx, self._project, anchor=anchor)

    def verify_edges(self, refs: set[str]) -> EdgeReport:
        """Check the edges that touch ``refs`` against the chain."""
        with self._store.read() as tx:
            return audit.verify_edges(tx, self._project, refs)


def _store_answer(
    tx: Writer,
    project: str,
    key: str,
    operation: str,
    arguments: dict[str, Any],
    answer: bytes,
    settlement: Settlement,
) -> None:
    digest, now = arguments_digest(arguments), time.time_ns() // 1000
    # An operation of several decisions stores an answer with each of them: the last one is the answer to the call.
    if settlement.answer is not None and tx.execute(
        "UPDATE idempotency SET result = ?, at_us = ? WHERE project = ? AND key = ?",
        answer.decode(), now, project, key,
    ):  # fmt: skip
        settlement.answer = answer
        return
    # Two calls with one key may run at the same time. The primary key lets one of them insert; the other is rolled back.
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
    """By which a repeated call is recognised: BLAKE3 over the canonical JSON of its arguments, in hex."""
    return blake3.blake3(to_json(arguments)).hexdigest()


def chain_hash(project: str, event: Event) -> str:
    """BLAKE3 over the canonical JSON of every field but the hash itself; ``prev`` makes it a chain."""
    return row_hash(
        project,
        {
            "seq": event.seq, "id": event.id, "at_us": to_us(event.at), "wall_us": to_us(event.wall), "kind": event.kind,
            "subject": event.subject, "actor": event.actor, "operation": event.operation,
            "data": to_json(event.data).decode(), "prev": event.prev,
        },
    )  # fmt: skip
