"""Verification of the event chain: every row that does not match is named, and the check goes on behind it.

Edges are kept in a table of their own, since they are looked up from both ends. The event that was committed with an edge
names it (``data["edges"]``), so the table can be checked against the chain: an edge that no event names was forged, one that an
event names but the table lacks was removed. Edges of version 1 have no event; the first decision of version 2 seals them
(``lineage.sealed``: their number and digest), so that none can be added to them later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import blake3

from mainspring.clock import from_us
from mainspring.records.base import from_json, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import AuditReport, Edge, EdgeReport, Event
from mainspring.storage.sql import Reader, Row

GENESIS = "0" * 64
EDGES = "edges"
"""In an event's data: the edges that were recorded with it, each ``[source, target, kind]``."""

SEALED = EventKind.LINEAGE_SEALED.value
DAMAGED = EventKind.EVENT_DAMAGED.value
MAX_PROBLEMS = 200

_COLUMNS = ("seq", "id", "at_us", "wall_us", "kind", "subject", "actor", "operation", "data", "prev", "hash")
_BATCH = 2000

EdgeKey = tuple[str, str, str]


# --- rows that may be damaged ------------------------------------------------------------------------------------------


def event_of(row: Row) -> Event:
    """The event of a row. One that cannot be decoded is shown as ``event.damaged``, with what is left of it."""
    try:
        return Event(
            seq=int(row["seq"]),
            id=_read_text(row, "id"),
            at=from_us(row["at_us"]),
            wall=from_us(row["wall_us"]),
            kind=_read_text(row, "kind"),
            subject=_read_text(row, "subject"),
            actor=_read_text(row, "actor"),
            operation=_read_text(row, "operation"),
            data=from_json(row["data"], dict[str, Any]),
            prev=_read_text(row, "prev"),
            hash=_read_text(row, "hash"),
        )
    except Exception as error:  # noqa: BLE001 - whatever a damaged row holds must not hide the others
        return _damaged_event(row, f"{type(error).__name__}: {error}")


def _read_text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str):  # not str(): a cell that cannot be read would become the text "None"
        msg = f"{name} is no text"
        raise TypeError(msg)
    return value


def _damaged_event(row: Row, reason: str) -> Event:
    def text(name: str) -> str:
        value = row.get(name)
        return value if isinstance(value, str) else ""

    def moment(name: str) -> Any:
        try:
            return from_us(row[name])
        except Exception:  # noqa: BLE001 - see above
            return from_us(0)

    seq = row.get("seq")
    return Event(
        seq=seq if isinstance(seq, int) else -1,
        id=text("id"),
        at=moment("at_us"),
        wall=moment("wall_us"),
        kind=DAMAGED,
        subject=text("subject"),
        actor=text("actor"),
        operation=text("operation"),
        data={
            "reason": f"this row cannot be read: {reason[:300]}",
            "was": text("kind"),
            "next_step": "Run 'mainspring audit verify'; restore the row from a backup.",
        },
        prev=text("prev"),
        hash=text("hash"),
    )


def rows_of(tx: Reader, where: str, values: list[Any], tail: str) -> list[Row]:
    """Rows of ``events``. A row that the driver cannot decode has None in the cells that cannot be read."""
    try:
        return tx.all(f"SELECT * FROM events WHERE {where} {tail}", *values)
    except Exception:  # noqa: BLE001 - a driver's error for one cell fails the whole query; read cell by cell below
        keys = tx.all(f"SELECT project, seq FROM events WHERE {where} {tail}", *values)
        return [_read_cells(tx, str(r["project"]), r["seq"]) for r in keys]


def _read_cells(tx: Reader, project: str, seq: Any) -> Row:
    row: Row = {"seq": seq, "project": project}
    for name in _COLUMNS[1:]:
        try:
            row[name] = tx.scalar(f"SELECT {name} FROM events WHERE project = ? AND seq = ?", project, seq)
        except Exception:  # noqa: BLE001 - this cell is lost, the others are not
            row[name] = None
    return row


def row_hash(project: str, row: Row) -> str:
    """The hash that the row must have, in hex; empty for a row with a value of a type that no event has."""
    # Over the stored text of ``data``, not over what it decodes to: the hash must not depend on the decoder.
    try:
        return blake3.blake3(to_json([project, *(row[name] for name in _COLUMNS[:-1])])).hexdigest()
    except (TypeError, ValueError, OverflowError):  # a value of a type that no event has
        return ""


def _iterate_events(tx: Reader, project: str) -> Iterator[Row]:
    last: Any = -(1 << 63)  # so that a row with a number below 1 is seen too
    while rows := rows_of(tx, "project = ? AND seq > ?", [project, last], f"ORDER BY seq LIMIT {_BATCH}"):
        yield from rows
        last = rows[-1]["seq"]


def edges_named(row: Row) -> list[EdgeKey]:
    """The edges that the event of ``row`` recorded."""
    data = row["data"]
    if not isinstance(data, str) or f'"{EDGES}":' not in data:
        return []
    named = event_of(row).data.get(EDGES)
    if not isinstance(named, list):
        return []
    return [
        (e[0], e[1], e[2])
        for e in named
        if isinstance(e, list) and len(e) == 3 and all(isinstance(part, str) for part in e)
    ]


# --- the whole chain ---------------------------------------------------------------------------------------------------


class _Walk:
    """What a check of a chain has seen so far."""

    def __init__(self) -> None:
        self.expected, self.previous = 1, GENESIS
        self.good = (0, GENESIS)
        self.first_bad: int | None = None
        self.problems: list[str] = []
        self.edges = 0
        self.naming: set[int] = set()
        self.sealed: Event | None = None

    def note(self, problem: str, *, at: int | None = None) -> None:
        if self.first_bad is None and at is not None:
            self.first_bad, self.good = at, (at - 1, self.previous)
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def verify_chain(tx: Reader, project: str, *, anchor: tuple[int, str] | None = None) -> AuditReport:
    """Check every event against its hash and the event before it, then every edge against the event that recorded it.

    A row that does not match is named, and the check goes on behind it. ``anchor`` is an earlier ``(seq, hash)`` kept
    elsewhere: it catches truncation.
    """
    seen = _Walk()
    anchored = anchor is None or anchor[0] == 0
    head = tx.first("SELECT seq, hash FROM chain_heads WHERE project = ?", project)
    for row in _iterate_events(tx, project):
        _check_row(tx, project, row, seen)
        anchored = anchored or anchor == (row["seq"], row["hash"])
    count = seen.expected - 1
    if (head["seq"], head["hash"]) != (count, seen.previous) if head is not None else count:
        seen.note(
            "events are missing at the end" if head is not None else "the head of the chain is missing",
            at=seen.expected,
        )
    if not anchored:
        seen.note("the anchored event is missing or changed", at=anchor[0] if anchor else 0)
    legacy = _check_unnamed_edges(tx, project, seen)
    ok = not seen.problems
    events, hash_ = (count, seen.previous) if seen.first_bad is None else seen.good
    return AuditReport(
        ok=ok,
        events=events,
        head=hash_,
        first_bad=seen.first_bad,
        reason=seen.problems[0] if seen.problems else None,
        problems=seen.problems,
        edges=seen.edges,
        edges_of_version_1=legacy,
    )


def _check_row(tx: Reader, project: str, row: Row, seen: _Walk) -> None:
    seq, name = row["seq"], f"event {row['seq']} (id {row['id'] or 'unreadable'})"
    if seq != seen.expected:
        seen.note(f"sequence number {seen.expected} is missing", at=seen.expected)
    elif row["prev"] != seen.previous or row_hash(project, row) != row["hash"]:
        unread = [c for c in _COLUMNS if row.get(c) is None]
        reason = f": {', '.join(unread)} cannot be decoded" if unread else ""
        seen.note(f"{name}: the row does not match its hash{reason}", at=seq)
    else:
        _check_edges(tx, project, row, seen)
    if isinstance(seq, int):
        seen.expected = max(seq, 0) + 1
    seen.previous = row["hash"] if isinstance(row["hash"], str) else seen.previous


def _check_edges(tx: Reader, project: str, row: Row, seen: _Walk) -> None:
    """Compare the edges that one valid event names with those in the table."""
    if row["kind"] == SEALED and seen.sealed is None:
        seen.sealed = event_of(row)
    named = set(edges_named(row))
    if not named:
        return
    seen.naming.add(row["seq"])
    seen.edges += len(named)
    stored = {
        (str(r["source"]), str(r["target"]), str(r["kind"]))
        for r in tx.all(
            "SELECT source, target, kind FROM edges WHERE project = ? AND event = ?", project, row["seq"]
        )
    }
    for edge in sorted(named - stored):
        seen.note(f"edge {_describe_edge(edge)}: recorded by event {row['seq']}, but missing in the table")
    for edge in sorted(stored - named):
        seen.note(f"edge {_describe_edge(edge)}: its row names event {row['seq']}, which did not record it")


def _check_unnamed_edges(tx: Reader, project: str, seen: _Walk) -> int:
    """Note the edges that no valid event names; returns how many edges are of version 1."""
    counts = tx.all("SELECT event, count(*) AS n FROM edges WHERE project = ? GROUP BY event", project)
    for count in counts:
        if count["event"] is None or count["event"] in seen.naming:
            continue
        for r in tx.all(
            "SELECT source, target, kind FROM edges WHERE project = ? AND event = ? LIMIT 20",
            project,
            count["event"],
        ):
            edge = (str(r["source"]), str(r["target"]), str(r["kind"]))
            seen.note(f"edge {_describe_edge(edge)}: event {count['event']} of the chain did not record it")
    old = sum(int(c["n"]) for c in counts if c["event"] is None)
    problem = _check_version_1(tx, project, old, seen.sealed, named=bool(seen.naming))
    if problem is None:
        return old
    seen.note(problem)
    return 0


# --- edges of version 1 ------------------------------------------------------------------------------------------------


def seal_edges_of_version_1(
    tx: Reader, project: str, new: list[EdgeKey], record: Callable[[EventKind, dict[str, Any]], object]
) -> None:
    """Called once per transaction that records ``new`` edges: before the first of version 2, seal those of version 1.

    Where the chain names an edge already, or was sealed before, nothing more can be sealed: an edge without an event was forged then.
    """
    if tx.first("SELECT 1 AS one FROM edges WHERE project = ? AND event IS NOT NULL LIMIT 1", project):
        return
    if tx.first("SELECT 1 AS one FROM events WHERE project = ? AND kind = ? LIMIT 1", project, SEALED):
        return
    count, digest = _digest_of_version_1(tx, project, without=set(new))
    if count:
        record(EventKind.LINEAGE_SEALED, {"count": count, "digest": digest})


def _digest_of_version_1(
    tx: Reader, project: str, *, without: AbstractSet[EdgeKey] = frozenset()
) -> tuple[int, str]:
    hasher, count = blake3.blake3(), 0
    for r in tx.all(
        "SELECT source, target, kind FROM edges WHERE project = ? AND event IS NULL ORDER BY source, target, kind",
        project,
    ):
        edge = (str(r["source"]), str(r["target"]), str(r["kind"]))
        if edge not in without:
            hasher.update(to_json(list(edge)) + b"\n")
            count += 1
    return count, hasher.hexdigest()


def _check_version_1(
    tx: Reader, project: str, count: int, sealed: Event | None, *, named: bool
) -> str | None:
    """What is wrong with the edges that have no event; None if version 1 can have recorded them all."""
    if sealed is None:
        if count and named:
            first = tx.all(
                "SELECT source, target, kind FROM edges WHERE project = ? AND event IS NULL LIMIT 1", project
            )[0]
            edge = (str(first["source"]), str(first["target"]), str(first["kind"]))
            return f"{count} edges that no event of the chain recorded, the first: {_describe_edge(edge)}"
        return None
    wanted = (sealed.data.get("count"), sealed.data.get("digest"))
    if (count, _digest_of_version_1(tx, project)[1]) == wanted:
        return None
    return f"the edges recorded before version 2 are not those that event {sealed.seq} sealed: {wanted[0]} then, {count} now"


# --- edges around some things ------------------------------------------------------------------------------------------


def verify_edges(tx: Reader, project: str, refs: set[str]) -> EdgeReport:
    """Compare the stored edges that touch ``refs`` with the chain; also reports edges that the chain names but the table lacks."""
    stored: dict[EdgeKey, Any] = {}
    for ref in refs:
        for r in tx.all(
            "SELECT source, target, kind, event FROM edges WHERE project = ? AND (source = ? OR target = ?)",
            project,
            ref,
            ref,
        ):
            stored[str(r["source"]), str(r["target"]), str(r["kind"])] = r["event"]
    named: dict[EdgeKey, int] = {}
    problems: list[str] = []
    sealed: Event | None = None
    any_named = False
    for row in _iterate_events(tx, project):
        if row["kind"] == SEALED and sealed is None:
            sealed = event_of(row)
        recorded = edges_named(row)
        any_named = any_named or bool(recorded)
        touching = [e for e in recorded if e[0] in refs or e[1] in refs]
        if not touching:
            continue
        if row_hash(project, row) != row["hash"]:
            problems.append(
                f"event {row['seq']} (id {row['id']}), which recorded edges, does not match its hash"
            )
            continue
        named.update(dict.fromkeys(touching, int(row["seq"])))
    old = [e for e, event in stored.items() if event is None]
    if old:
        total = int(tx.scalar("SELECT count(*) AS n FROM edges WHERE project = ? AND event IS NULL", project))
        problem = _check_version_1(tx, project, total, sealed, named=any_named)
        if problem is not None:
            problems.append(problem)
    trusted = not old or sealed is not None or not any_named
    return EdgeReport(
        forged=[
            _edge_record(e)
            for e, event in sorted(stored.items(), key=lambda i: i[0])
            if (event is None and not trusted) or (event is not None and named.get(e) != event)
        ],
        missing=[_edge_record(e) for e in sorted(named) if e not in stored],
        before_version_2=[_edge_record(e) for e in sorted(old)] if trusted else [],
        problems=problems,
    )


def _edge_record(key: EdgeKey) -> Edge:
    return Edge(source=key[0], target=key[1], kind=key[2])


def _describe_edge(edge: EdgeKey) -> str:
    return f"{edge[0]} → {edge[1]} ({edge[2]})"
