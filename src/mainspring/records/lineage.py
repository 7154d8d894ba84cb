"""Events, edges and references between things."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mainspring.records.base import Record


def ref(kind: str, ident: str) -> str:
    """A reference to a thing: ``kind:id``. Rooms meet by these, not by import.

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


class Edge(Record, frozen=True):
    """``source`` led to ``target``, in the role ``kind``."""

    source: str
    target: str
    kind: str
    at: datetime | None = None


class Graph(Record, frozen=True):
    """A piece of lineage around ``root``: nodes with what is known of them, and edges."""

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
    """Outcome of verifying the event chain. ``first_bad`` is the first sequence number that does not fit."""

    ok: bool
    events: int
    head: str
    first_bad: int | None = None
    reason: str | None = None
