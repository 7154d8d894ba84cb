"""Alerts: opened once, kept open while windows show the finding, resolved without anybody's action."""

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


def update_alerts(
    d: Decision,
    project: str,
    deployment: str,
    *,
    window: str,
    at_us: int,
    seen: Mapping[Subject, str],
    judged: Collection[Subject] | None,
    kinds: Collection[str],
    policy: MonitorPolicy,
) -> tuple[list[str], list[str]]:
    """Bring the alerts of these kinds up to date with the findings of one newly judged window; returns the ids (opened, resolved).

    ``seen`` maps each finding to its detail. ``judged`` says what could be judged at all: an alert whose subject had too
    little data is neither confirmed nor cleared (None: everything was judged).
    """
    opened, resolved = [], []
    rows = d.tx.all(
        "SELECT * FROM alerts WHERE project = ? AND deployment = ? AND open_key IS NOT NULL",
        project,
        deployment,
    )
    open_alerts = {(r["kind"], r["subject"]): r for r in rows if r["kind"] in kinds}
    for key, detail in sorted(seen.items()):
        alert = open_alerts.get(key)
        if alert:
            d.tx.execute(
                "UPDATE alerts SET last_us = ?, hits = hits + 1, quiet = 0, window_id = ?, detail = ? WHERE project = ? AND id = ?",
                max(at_us, alert["last_us"]), window, detail, project, alert["id"],
            )  # fmt: skip
        elif _is_confirmed(d, project, deployment, key, at_us, policy.confirm):
            opened.append(_open_alert(d, project, deployment, key, window, at_us, detail))
    for key, alert in sorted(open_alerts.items()):
        if key in seen or (judged is not None and key not in judged):
            continue
        if alert["quiet"] + 1 >= policy.clear:
            _resolve_alert(d, project, alert, at_us, "the last windows did not show it")
            resolved.append(alert["id"])
        else:
            d.tx.execute(
                "UPDATE alerts SET quiet = quiet + 1 WHERE project = ? AND id = ?", project, alert["id"]
            )
    return opened, resolved


def resolve_alerts(
    d: Decision, project: str, deployment: str, *, kinds: Collection[str], at_us: int, reason: str
) -> list[str]:
    """Resolve every open alert of these kinds, since the reference that they were measured against is no longer used; returns their ids."""
    rows = d.tx.all(
        "SELECT * FROM alerts WHERE project = ? AND deployment = ? AND open_key IS NOT NULL",
        project,
        deployment,
    )
    ended = [r for r in rows if r["kind"] in kinds]
    for row in ended:
        _resolve_alert(d, project, row, at_us, reason)
    return [r["id"] for r in ended]


def _is_confirmed(d: Decision, project: str, deployment: str, key: Subject, at_us: int, confirm: int) -> bool:
    """Whether this window and the ``confirm - 1`` windows before it all showed the finding."""
    if confirm <= 1:
        return True
    before = d.tx.all(
        "SELECT w.id, (SELECT count(*) FROM findings f WHERE f.project = w.project AND f.window_id = w.id AND f.kind = ? AND f.subject = ? AND f.severity = 'warning') AS n"
        " FROM windows w WHERE w.project = ? AND w.deployment = ? AND w.end_us < ? AND w.state = 'closed' ORDER BY w.end_us DESC LIMIT ?",
        *key, project, deployment, at_us, confirm - 1,
    )  # fmt: skip
    return len(before) == confirm - 1 and all(r["n"] > 0 for r in before)


def _open_alert(
    d: Decision, project: str, deployment: str, key: Subject, window: str, at_us: int, detail: str
) -> str:
    ident = new_id()
    # A unique index over open_key, which is NULL once resolved, allows one open alert per deployment, kind and subject.
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


def _resolve_alert(d: Decision, project: str, row: Row, at_us: int, reason: str) -> None:
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
