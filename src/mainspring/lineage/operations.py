"""Operations on the lineage graph and the event log."""

from __future__ import annotations

from collections import deque

import msgspec

from mainspring.clock import from_us
from mainspring.errors import InvalidInput, NotFound
from mainspring.lineage import deliveries
from mainspring.lineage.audit import MAX_PROBLEMS, event_of, rows_of
from mainspring.lineage.foundation import Foundation
from mainspring.lineage.sources import GraphSources
from mainspring.operations import MIB, Role, operation
from mainspring.records.events import EventKind
from mainspring.records.lineage import (
    AuditReport,
    ConsumerStatus,
    Edge,
    EdgeReport,
    EventPage,
    FailedDelivery,
    Graph,
    Node,
    ref,
    split_ref,
)
from mainspring.storage.sql import Reader

_MAX_NODES = 2000
_MAX_REFS = 5000


class Lineage:
    """The graph of what came from what, and the log of what happened. ``sources``: what other rooms know beyond the stored edges."""

    room = "lineage"

    def __init__(self, base: Foundation, sources: GraphSources | None = None) -> None:
        self._base = base
        self._sources = sources or GraphSources()

    @operation(role=Role.VIEWER)
    def get_origin(self, ref: str, *, depth: int = 20) -> Graph:
        """Everything that led to ``ref``, nearest first; raises NotFound if nothing is known of it."""
        return self._walk_graph(ref, depth, forward=False)

    @operation(role=Role.VIEWER)
    def get_blast_radius(self, ref: str, *, depth: int = 20) -> Graph:
        """Everything that ``ref`` led to: its blast radius."""
        return self._walk_graph(ref, depth, forward=True)

    @operation(role=Role.VIEWER)
    def list_events(
        self,
        *,
        subject: str | None = None,
        kind: str | None = None,
        after: int | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> EventPage:
        """Page through the event log, by subject and by kind (``model.`` matches all kinds of that prefix)."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        where, values = ["project = ?"], [self._base.project]
        if subject is not None:
            where.append("subject = ?")
            values.append(subject)
        if kind is not None and kind.endswith("."):
            where.append("kind >= ? AND kind < ?")
            values += [kind, kind[:-1] + "/"]  # '/' follows '.' in ASCII: a prefix match that uses the index
        elif kind is not None:
            where.append("kind = ?")
            values.append(kind)
        bound: list[int] = []
        if after is not None:
            where.append("seq < ?" if newest_first else "seq > ?")
            bound.append(after)
        order = "DESC" if newest_first else "ASC"
        with self._base.store.read() as tx:
            rows = rows_of(
                tx, " AND ".join(where), [*values, *bound], f"ORDER BY seq {order} LIMIT {limit + 1}"
            )
        items = [event_of(row) for row in rows[:limit]]
        return EventPage(items=items, next=items[-1].seq if len(rows) > limit else None)

    @operation(role=Role.VIEWER)
    def verify(self, *, anchor: str | None = None) -> AuditReport:
        """Check the whole event chain of this project, and the edges, verdicts, aliases and approvals that it records.

        Everything that does not match is named; nothing stops the check. ``anchor`` (``<seq>:<hash>``, kept elsewhere) shows
        whether events were cut off at the end since then.
        """
        if anchor is None:
            return self._with_room_problems(self._base.ledger.verify())
        seq, colon, digest = anchor.partition(":")
        if not colon or not seq.isdigit() or len(digest) != 64:
            raise InvalidInput(
                "an anchor is <seq>:<hash>", value=anchor, next_step="'mainspring audit anchor' prints one."
            )
        return self._with_room_problems(self._base.ledger.verify(anchor=(int(seq), digest)))

    @operation(role=Role.VIEWER, max_body=4 * MIB)
    def verify_edges(self, *, refs: list[str]) -> EdgeReport:
        """Check the edges that touch these things (at most 5,000) against the events that recorded them."""
        if len(refs) > _MAX_REFS:
            raise InvalidInput("too many references", value=len(refs), next_step=f"At most {_MAX_REFS}.")
        return self._base.ledger.verify_edges(set(refs))

    # --- consumers of events (lineage/consumers.py delivers) -----------------------------------------------------------

    @operation(role=Role.VIEWER)
    def list_consumers(self) -> list[ConsumerStatus]:
        """The consumers of the event log, by name: how far each has come, what waits, since when and why it fails."""
        with self._base.store.read() as tx:
            return deliveries.list_statuses(tx, self._base.project)

    @operation(role=Role.VIEWER)
    def list_failed_deliveries(
        self, consumer: str, *, after: int | None = None, limit: int = 100
    ) -> list[FailedDelivery]:
        """Events that were set aside because they could not be delivered to this consumer, oldest first."""
        if not 1 <= limit <= 1000:
            raise InvalidInput("limit must be 1 to 1000", value=limit)
        with self._base.store.read() as tx:
            deliveries.check_consumer(tx, self._base.project, consumer)
            return deliveries.list_failed(tx, self._base.project, consumer, after=after or 0, limit=limit)

    @operation(role=Role.OPERATOR, changes=True)
    def redeliver(self, consumer: str, *, seq: int | None = None) -> int:
        """Request one more attempt for an event that was set aside, or for all; returns how many were newly requested.

        The process that runs the consumer makes the attempt in its next turn. What fails again is set aside again.
        """
        with self._base.ledger.decision() as d:
            deliveries.check_consumer(d.tx, self._base.project, consumer)
            count = deliveries.request_redelivery(d.tx, self._base.project, consumer, seq)
            if count:
                d.event(
                    EventKind.CONSUMER_REDELIVERED, ref("consumer", consumer), {"count": count, "seq": seq}
                )
            return d.done(count)

    @operation(role=Role.ADMIN, changes=True)
    def remove_consumer(self, consumer: str, *, reason: str) -> None:
        """Forget a consumer: its cursor and what was set aside. A process that still runs it stops delivering; it is registered again
        when such a process starts."""
        with self._base.ledger.decision() as d:
            deliveries.check_consumer(d.tx, self._base.project, consumer)
            deliveries.remove_consumer(d.tx, self._base.project, consumer)
            d.event(EventKind.CONSUMER_REMOVED, ref("consumer", consumer), {"reason": reason})
            d.done(None)

    def _with_room_problems(self, report: AuditReport) -> AuditReport:
        with self._base.store.read() as tx:
            room_problems = [p for auditor in self._sources.auditors.values() for p in auditor(tx)]
        problems = [*report.problems, *room_problems][:MAX_PROBLEMS]
        return msgspec.structs.replace(
            report, ok=not problems, problems=problems, reason=problems[0] if problems else None
        )

    def _walk_graph(self, root: str, depth: int, *, forward: bool) -> Graph:
        facts = self._find_facts(root)
        nodes = {root: Node(ref=root, kind=split_ref(root)[0], depth=0, facts=facts or {})}
        edges: dict[tuple[str, str, str], Edge] = {}
        queue = deque([root])
        truncated = False
        while queue:
            reference = queue.popleft()
            distance = nodes[reference].depth
            if distance >= depth:
                truncated = True
                continue
            if not forward and distance and nodes[reference].kind == "deployment":
                continue  # a place, not a cause: every version that ever answered there leads to it
            for edge in self._list_edges(reference, forward=forward):
                edges.setdefault((edge.source, edge.target, edge.kind), edge)
                other = edge.target if forward else edge.source
                if other in nodes:
                    continue
                if len(nodes) >= _MAX_NODES:
                    truncated = True
                    continue
                nodes[other] = Node(
                    ref=other,
                    kind=split_ref(other)[0],
                    depth=distance + 1,
                    facts=self._find_facts(other) or {},
                )
                queue.append(other)
        if facts is None and not edges:
            raise NotFound(
                "nothing is known of this",
                value=root,
                next_step=(
                    "A prediction is known some seconds after it was given, when the loop has taken in the log (mainspring up, or mainspring loop tick)."
                    if split_ref(root)[0] == "prediction"
                    else "References look like 'prediction:<id>' or 'model_version:delay@3'."
                ),
            )
        return Graph(root=root, nodes=list(nodes.values()), edges=list(edges.values()), truncated=truncated)

    def _list_edges(self, reference: str, *, forward: bool) -> list[Edge]:
        column = "source" if forward else "target"
        kind, ident = split_ref(reference)
        with self._base.store.read() as tx:
            rows = tx.all(
                f"SELECT source, target, kind, at_us, event FROM edges WHERE project = ? AND {column} = ? LIMIT ?",
                self._base.project,
                reference,
                _MAX_NODES,
            )
            if not forward and kind == "dataset_version" and any(r["event"] is None for r in rows):
                committed_us = self._first_commit_us(tx, reference)
                rows = [r for r in rows if r["event"] is not None or int(r["at_us"]) <= committed_us]
        edges = [
            Edge(source=r["source"], target=r["target"], kind=r["kind"], at=from_us(r["at_us"])) for r in rows
        ]
        source = (self._sources.effects if forward else self._sources.causes).get(kind)
        return edges + list(source(ident)) if source else edges

    def _first_commit_us(self, tx: Reader, version: str) -> int:
        """The time of the first commit of this content in microseconds, plus the second that one decision may take: version 1 also
        recorded who committed equal content later, which is no cause of it."""
        first = tx.scalar(
            "SELECT at_us FROM events WHERE project = ? AND subject = ? AND kind = 'dataset.committed' ORDER BY seq LIMIT 1",
            self._base.project, version,
        )  # fmt: skip
        return 1 << 62 if first is None else int(first) + 1_000_000

    def _find_facts(self, reference: str) -> dict[str, object] | None:
        kind, ident = split_ref(reference)
        source = self._sources.facts.get(kind)
        return source(ident) if source else None
