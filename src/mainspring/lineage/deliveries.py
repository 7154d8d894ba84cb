"""Reads and requests about consumers: how far each has come, and what could not be delivered. :mod:`mainspring.lineage.consumers` writes."""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.clock import from_us
from mainspring.errors import NotFound, near
from mainspring.records.base import from_json
from mainspring.records.lineage import ConsumerStatus, FailedDelivery
from mainspring.storage.sql import Reader, Row, Writer

_MAX_COUNT = 100_000


def read_head(tx: Reader, project: str) -> int:
    """The sequence number of the newest event. A row beyond it is not of this chain."""
    return int(tx.scalar("SELECT seq FROM chain_heads WHERE project = ?", project) or 0)


def count_ahead(
    tx: Reader, project: str, cursor: int, kinds: Iterable[str] | None, *, limit: int
) -> tuple[int, int]:
    """How many events follow the cursor, counted up to ``limit``, and how many of those have one of ``kinds`` (None: any kind)."""
    names = None if kinds is None else [str(kind) for kind in kinds]
    if names is None:
        wanted = "1"
    else:
        wanted = f"CASE WHEN kind IN ({', '.join('?' * len(names))}) THEN 1 ELSE 0 END" if names else "0"
    # The LIMIT is inside: a consumer that is far behind costs a walk of ``limit`` entries of the primary key, not of the whole log.
    row = tx.all(
        f"SELECT count(*) AS seen, coalesce(sum({wanted}), 0) AS wanted FROM "
        "(SELECT kind FROM events WHERE project = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?) AS ahead",
        *(names or []), project, cursor, read_head(tx, project), limit,
    )[0]  # fmt: skip
    return int(row["seen"]), int(row["wanted"])


def check_consumer(tx: Reader, project: str, name: str) -> None:
    """Raise :class:`NotFound`, with similar names, if the project has no such consumer."""
    names = [str(r["name"]) for r in tx.all("SELECT name FROM consumers WHERE project = ?", project)]
    if name not in names:
        raise NotFound("no such consumer", value=name, next_step=near(name, names, what="consumer"))


def list_statuses(tx: Reader, project: str) -> list[ConsumerStatus]:
    """The state of every consumer of the project, by name."""
    head = read_head(tx, project)
    counts = {
        str(r["consumer"]): int(r["n"])
        for r in tx.all(
            "SELECT consumer, count(*) AS n FROM failed_deliveries WHERE project = ? GROUP BY consumer",
            project,
        )
    }
    rows = tx.all("SELECT * FROM consumers WHERE project = ? ORDER BY name", project)
    return [_read_status(tx, project, row, head, counts.get(str(row["name"]), 0)) for row in rows]


def _read_status(tx: Reader, project: str, row: Row, head: int, set_aside: int) -> ConsumerStatus:
    kinds = None if row["kinds"] is None else from_json(row["kinds"], list[str])
    cursor, error = int(row["cursor"]), row["error"]
    if cursor > head:
        error = f"the event chain ends at {head}, before the cursor: nothing is delivered"
    return ConsumerStatus(
        name=row["name"],
        kinds=kinds,
        cursor=cursor,
        head=head,
        waiting=count_ahead(tx, project, cursor, kinds, limit=_MAX_COUNT)[1],
        created_at=from_us(row["created_us"]),
        delivered_at=None if row["moved_us"] is None else from_us(row["moved_us"]),
        failing_since=None if row["failing_us"] is None else from_us(row["failing_us"]),
        attempts=int(row["attempts"]),
        retry_at=from_us(row["retry_us"]) if row["retry_us"] else None,
        error=error,
        set_aside=set_aside,
    )


def list_failed(tx: Reader, project: str, consumer: str, *, after: int, limit: int) -> list[FailedDelivery]:
    """Events with a sequence number above ``after`` that were set aside for this consumer, oldest first."""
    rows = tx.all(
        "SELECT * FROM failed_deliveries WHERE project = ? AND consumer = ? AND seq > ? ORDER BY seq LIMIT ?",
        project, consumer, after, limit,
    )  # fmt: skip
    return [
        FailedDelivery(
            seq=int(r["seq"]), event=r["event"], kind=r["kind"], attempts=int(r["attempts"]), error=r["error"], at=from_us(r["at_us"]),
            again=bool(r["again"]),
        )
        for r in rows
    ]  # fmt: skip


def request_redelivery(tx: Writer, project: str, consumer: str, seq: int | None) -> int:
    """Mark one event, or all that were set aside, for another attempt; returns how many were not marked before.

    Raises :class:`NotFound` if ``seq`` was not set aside for this consumer.
    """
    if seq is not None and not tx.first(
        "SELECT 1 AS one FROM failed_deliveries WHERE project = ? AND consumer = ? AND seq = ?", project, consumer, seq
    ):  # fmt: skip
        raise NotFound(
            "no such event was set aside",
            value=seq,
            place=f"consumer {consumer!r}",
            next_step="lineage.list_failed_deliveries lists them.",
        )
    condition, values = ("", []) if seq is None else (" AND seq = ?", [seq])
    return tx.execute(
        f"UPDATE failed_deliveries SET again = 1 WHERE project = ? AND consumer = ? AND again = 0{condition}",
        project, consumer, *values,
    )  # fmt: skip


def remove_consumer(tx: Writer, project: str, consumer: str) -> None:
    """Delete a consumer's cursor and the events that were set aside for it."""
    tx.execute("DELETE FROM failed_deliveries WHERE project = ? AND consumer = ?", project, consumer)
    tx.execute("DELETE FROM consumers WHERE project = ? AND name = ?", project, consumer)
