"""Events, edges and references between things."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mainspring.records.base import Record


def ref(kind: str, ident: str) -> str:
    """A reference to a thing: ``kind:id``. Rooms refer to each other's things by references, not by imports.

    Kinds: ``dataset_version:<id>``, ``run:<id>``, ``step:<id>`` (a step execution), ``model:<name>``,
    ``model_version:<name>@<n>``, ``deployment:<name>``, ``rollout:<id>``, ``prediction:<id>``, ``window:<id>``,
    ``alert:<id>``, ``verdict:<id>``, ``feedback:<id>``, ``code:<digest>``, ``environment:<digest>``, ``object:<digest>``.

    >>> ref("model_version", "delay@3")
    'model_version:delay@3'
    """
    return f"{kind}:{ident}"


def split_ref(reference: str) -> tuple[str, str]:
    """``(kind, id)`` of a reference."""
    kind, _, ident = reference.partition(":")
    return kind, ident


class Event(Record, frozen=True):
    """Something that happened, and who did it. Chained: ``hash`` covers all other fields and ``prev``."""

    seq: int
    id: str
    at: datetime
    """Policy time."""
    wall: datetime
    """Machine time."""
    kind: str
    subject: str
    actor: str
    operation: str
    data: dict[str, Any]
    prev: str
    hash: str


class EventPage(Record, frozen=True):
    items: list[Event]
    next: int | None = None
    """Pass as ``after`` for the next page; None at the end."""


class ConsumerStatus(Record, frozen=True):
    """The progress of a consumer of events. Times are machine time."""

    name: str
    kinds: list[str] | None
    """The kinds that it handles; None: every kind."""
    cursor: int
    """Every event up to this one is handled."""
    head: int
    """The newest event of the chain."""
    waiting: int
    """Events after the cursor that it handles, counted up to 100,000."""
    created_at: datetime
    delivered_at: datetime | None = None
    """When it last handled an event."""
    failing_since: datetime | None = None
    """The first failure after its last success."""
    attempts: int = 0
    """Failed attempts at the current event."""
    retry_at: datetime | None = None
    error: str | None = None
    set_aside: int = 0
    """Events that could not be delivered: ``lineage.list_failed_deliveries`` lists them, ``lineage.redeliver`` tries again."""


class FailedDelivery(Record, frozen=True):
    """An event that was set aside: the consumer failed with it too often, refused it, or its row cannot be read."""

    seq: int
    event: str
    """Its id."""
    kind: str
    attempts: int
    error: str
    at: datetime
    again: bool = False
    """Another attempt was requested and is pending."""


class Edge(Record, frozen=True):
    """``source`` led to ``target``, in the role ``kind``."""

    source: str
    target: str
    kind: str
    at: datetime | None = None


class Graph(Record, frozen=True):
    """A part of lineage around ``root``: nodes with their facts, and edges."""

    root: str
    nodes: list[Node]
    edges: list[Edge]
    truncated: bool = False


class Node(Record, frozen=True):
    """``depth`` counts hops from the root; ``facts`` are short, human-readable key-value pairs."""

    ref: str
    kind: str
    depth: int
    facts: dict[str, Any] = {}


class AuditReport(Record, frozen=True):
    """Outcome of verifying the event chain and what is derived from it. ``first_bad`` is the first sequence number that does not
    match; ``events`` and ``head`` say up to where the chain is intact, ``problems`` lists all problems (at most 200)."""

    ok: bool
    events: int
    head: str
    first_bad: int | None = None
    reason: str | None = None
    problems: list[str] = []
    edges: int = 0
    """Edges that the chain records."""
    edges_of_version_1: int = 0
    """Edges that version 1 recorded outside of the chain: they can be distinguished from later ones, but not verified."""


class EdgeReport(Record, frozen=True):
    """Edges around some things, compared with the chain. Each list holds edges as they are in the table or in the event."""

    forged: list[Edge] = []
    """In the table, but no event of the chain recorded it."""
    missing: list[Edge] = []
    """An event recorded it, but it is not in the table any more."""
    before_version_2: list[Edge] = []
    """Recorded by version 1, outside the chain."""
    problems: list[str] = []
    """Further problems, such as events that record an edge but do not match their own hash."""
