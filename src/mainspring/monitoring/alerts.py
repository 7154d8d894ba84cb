"""Alerts: opened once, kept while the thing lasts, resolved by themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mainspring.lineage.ledger import Decision
from mainspring.records.base import new_id
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.monitoring import MonitorPolicy
from mainspring.storage.sql import Row

Subject = tuple[str, str]
"""(kind, subject)"""


def update(
    d: Decision,
    project: str,
    deployment: str,
    *,
    window: str,
    at_us: int,
    seen: Mapping[Subject, str],
    looked_at: Collection[Subject] | None,
    kinds: Collection[str],
    policy: MonitorPolicy,
) -> tuple[list[str], list[str]]:
    """Bring the alerts of these kinds up to date with what one newly judged window showed; returns (opened, resolved).

    ``seen`` maps what was found to its detail. ``looked_at`` says what could be judged at all: an alert whose subject had too
    little data is neither confirmed nor cleared (None: everything was).
    """
    opened, resolved = [], []
    rows = d.tx.all(
        "SELECT * FROM alerts WHERE project = ? AND deployment = ? AND open_key IS NOT NULL",
        project,
        deployment,
    )
    open_alerts = {(r["kind"], r["subject"]): r for r in rows if r["kind"] in kinds}
    for key, detail in sorted(seen.items()):
        known = open_alerts.get(key)
        if known:
            d.tx.execute(
                "UPDATE alerts SET last_us = ?, hits = hits + 1, quiet = 0, window_id = ?, detail = ? WHERE project = ? AND id = ?",
                max(at_us, known["last_us"]), window, detail, project, known["id"],
            )  # fmt: skip
        elif _confirmed(d, project, deployment, key, at_us, policy.confirm):
            opened.append(_open(d, project, deployment, key, window, at_us, detail))
    for key, known in sorted(open_alerts.items()):
        if key in seen or (looked_at is not None and key not in looked_at):
            continue
        if known["quiet"] + 1 >= policy.clear:
            _resolve(d, project, known, at_us, "it was not seen any more")
            resolved.append(known["id"])
        else:
            d.tx.execute(
                "UPDATE alerts SET quiet = quiet + 1 WHERE project = ? AND id = ?", project, known["id"]
            )
    return opened, resolved


def resolve_all(
    d: Decision, project: str, deployment: str, *, kinds: Collection[str], at_us: int, reason: str
) -> list[str]:
    """Resolve every open alert of these kinds: what they were measured against is gone."""
    rows = d.tx.all(
        "SELECT * FROM alerts WHERE project = ? AND deployment = ? AND open_key IS NOT NULL",
        project,
        deployment,
    )
    gone = [r for r in rows if r["kind"] in kinds]
    for row in gone:
        _resolve(d, project, row, at_us, reason)
    return [r["id"] for r in gone]


def _confirmed(d: Decision, project: str, deployment: str, key: Subject, at_us: int, confirm: int) -> bool:
    """Whether the windows before this one showed it as well, ``confirm`` in a row."""
    if confirm <= 1:
        return True
    before = d.tx.all(
        "SELECT w.id, (SELECT count(*) FROM findings f WHERE f.project = w.project AND f.window_id = w.id AND f.kind = ? AND f.subject = ? AND f.severity = 'warning') AS n"
        " FROM windows w WHERE w.project = ? AND w.deployment = ? AND w.end_us < ? AND w.state = 'closed' ORDER BY w.end_us DESC LIMIT ?",
        *key, project, deployment, at_us, confirm - 1,
    )  # fmt: skip
    return len(before) == confirm - 1 and all(r["n"] > 0 for r in before)


def _open(
    d: Decision, project: str, deployment: str, key: Subject, window: str, at_us: int, detail: str
) -> str:
    ident = new_id()
    d.tx.execute(
        "INSERT INTO alerts (project, id, deployment, kind, subject, open_key, opened_us, last_us, resolved_us, hits, quiet, window_id, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 1, 0, ?, ?)",
        project, ident, deployment, *key, "/".join((deployment, *key)), at_us, at_us, window, detail,
    )  # fmt: skip
    kind, subject = key
    d.event(
        EventKind.ALERT_OPENED,
        ref("alert", ident),
        {"deployment": deployment, "kind": kind, "subject": subject, "window": window, "detail": detail},
    )
    d.edge(ref("window", window), ref("alert", ident), "showed")
    return ident


def _resolve(d: Decision, project: str, row: Row, at_us: int, reason: str) -> None:
    d.tx.execute(
        "UPDATE alerts SET open_key = NULL, resolved_us = ? WHERE project = ? AND id = ?",
        max(at_us, row["opened_us"]),
        project,
        row["id"],
    )
    d.event(
        EventKind.ALERT_RESOLVED,
        ref("alert", row["id"]),
        {"deployment": row["deployment"], "kind": row["kind"], "subject": row["subject"], "reason": reason},
    )
