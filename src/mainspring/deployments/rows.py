"""The rows behind deployments: the current routes, their history, and the outbox of decided route tables."""

from __future__ import annotations

import time

from mainspring.clock import from_us, to_us
from mainspring.lineage.foundation import Foundation
from mainspring.records.base import from_json, to_json
from mainspring.records.serving import Deployment, RouteChange, RouteTable
from mainspring.storage.sql import Reader, Writer

# --- current routes


def list_deployments(tx: Reader, base: Foundation) -> list[Deployment]:
    """All deployments, by name."""
    rows = tx.all("SELECT routes FROM deployments WHERE project = ? ORDER BY name", base.project)
    return [from_json(row["routes"], Deployment) for row in rows]


def read_deployment(tx: Reader, base: Foundation, name: str) -> Deployment | None:
    """One deployment, or None."""
    row = tx.first("SELECT routes FROM deployments WHERE project = ? AND name = ?", base.project, name)
    return from_json(row["routes"], Deployment) if row else None


def put_deployment(tx: Writer, base: Foundation, deployment: Deployment, *, number: int) -> None:
    """Insert or replace the routes of ``deployment``, last changed in route table ``number``."""
    tx.execute(
        "INSERT INTO deployments (project, name, number, routes, updated_us) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (project, name) DO UPDATE SET number = excluded.number, routes = excluded.routes, updated_us = excluded.updated_us",
        base.project, deployment.name, number, to_json(deployment).decode(), to_us(base.clock.now()),
    )  # fmt: skip


def delete_deployment(tx: Writer, base: Foundation, name: str) -> None:
    """Delete the routes of one deployment; its history stays."""
    tx.execute("DELETE FROM deployments WHERE project = ? AND name = ?", base.project, name)


# --- history


def insert_change(tx: Writer, base: Foundation, change: RouteChange) -> None:
    """Append one change of routes. A removal has no routes, which the row holds as the empty string."""
    routes = to_json(change.routes).decode() if change.routes else ""
    tx.execute(
        "INSERT INTO deployment_history (project, name, number, routes, reason, actor, at_us, event) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        base.project, change.deployment, change.number, routes, change.reason, change.actor, to_us(change.at), change.event,
    )  # fmt: skip


def list_changes(tx: Reader, base: Foundation, name: str, *, limit: int) -> list[RouteChange]:
    """The newest ``limit`` changes of one deployment, newest first."""
    rows = tx.all(
        "SELECT * FROM deployment_history WHERE project = ? AND name = ? ORDER BY number DESC LIMIT ?",
        base.project,
        name,
        limit,
    )
    return [
        RouteChange(
            deployment=name,
            number=int(row["number"]),
            routes=from_json(row["routes"], Deployment) if row["routes"] else None,
            reason=row["reason"],
            actor=row["actor"],
            at=from_us(row["at_us"]),
            event=row["event"],
        )
        for row in rows
    ]


# --- numbers of route tables


def next_number(tx: Writer, base: Foundation) -> int:
    """Take the next number of a route table.

    The UPDATE locks the project's row of the counter until the transaction ends: so on PostgreSQL numbers are taken, and their
    tables committed, one after the other. SQLite has one writer anyway. The INSERT makes the row, so that there is one to lock.
    """
    tx.execute(
        "INSERT INTO settings (project, name, value) VALUES (?, 'routes_number', '0') ON CONFLICT (project, name) DO NOTHING",
        base.project,
    )
    row = tx.all(
        "UPDATE settings SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE project = ? AND name = 'routes_number' RETURNING value",
        base.project,
    )[0]
    return int(row["value"])


def set_number(tx: Writer, base: Foundation, number: int) -> None:
    """Set the number that the last route table is taken to have had; :func:`next_number` continues from it."""
    tx.execute(
        "UPDATE settings SET value = ? WHERE project = ? AND name = 'routes_number'",
        str(number),
        base.project,
    )


# --- outbox


def insert_table(tx: Writer, base: Foundation, table: RouteTable) -> None:
    """Put a decided route table into the outbox, not yet published."""
    tx.execute(
        "INSERT INTO bundles (project, number, document, decided_us) VALUES (?, ?, ?, ?)",
        base.project, table.number, to_json(table).decode(), _now_us(),
    )  # fmt: skip


def read_newest_table(tx: Reader, base: Foundation) -> RouteTable | None:
    """The newest decided route table, published or not; None if there is none."""
    row = tx.first(
        "SELECT document FROM bundles WHERE project = ? ORDER BY number DESC LIMIT 1", base.project
    )
    return from_json(row["document"], RouteTable) if row else None


def count_unpublished(tx: Reader, base: Foundation) -> int:
    """How many decided route tables are not marked as published."""
    return int(
        tx.scalar(
            "SELECT count(*) AS n FROM bundles WHERE project = ? AND published_us IS NULL", base.project
        )
        or 0
    )


def mark_published(tx: Writer, base: Foundation, number: int) -> None:
    """Mark the tables up to ``number`` as published: a newer table replaces all older ones, so these need no writing."""
    tx.execute(
        "UPDATE bundles SET published_us = ? WHERE project = ? AND published_us IS NULL AND number <= ?",
        _now_us(), base.project, number,
    )  # fmt: skip


def _now_us() -> int:
    # The machine's time, not policy time: what the outbox records is when the work was really done.
    return time.time_ns() // 1000
