"""The figures at the end: read from the workspace, compared with what was sent and with the counters of ``/metrics``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.demo import report
from mainspring.demo.account import Account
from mainspring.records.events import EventKind

if TYPE_CHECKING:
    from mainspring.workspace import Workspace


def collect_figures(
    directory: Path, inference: str, account: Account, *, seed: int, without: str | None
) -> dict[str, Any]:
    """All figures of the last line, except time and memory."""
    from mainspring.workspace import open_workspace

    with open_workspace(directory) as workspace:
        rows = report.read_scores(workspace)
        counts = workspace.monitoring.get_counts()
        replayed = workspace.loop.replay()
        audit = workspace.lineage.verify()
        retrains = [
            e for e in report.list_events(workspace, EventKind.LOOP_RETRAIN) if e["reason"] != "first model"
        ]
        result: dict[str, Any] = {
            "without": without,
            "seed": seed,
            "requests": account.sent,
            "failed_requests": account.failed,
            "errors": account.errors[:5],
            "problems": account.problems[:20],
            "label_rates": account.label_rates,
            "refused_batch": account.refused,
            "drift_alerts": _list_opened_alerts(workspace, "drift"),
            "performance_alerts": _list_opened_alerts(workspace, "performance"),
            "retrains": retrains,
            "gate_stops": report.list_events(workspace, EventKind.LOOP_GATE_STOP),
            "rollbacks": report.list_events(workspace, EventKind.LOOP_ROLLBACK),
            "promotions": report.list_events(workspace, EventKind.LOOP_PROMOTE),
            "versions": {
                "model": len(workspace.models.list_versions(model="delay", limit=1000).items),
                "dataset": len(account.versions),
                "monthly_refits": _count_monthly_refits(workspace),
            },
            "monthly": report.score_by_month(rows),
            "loop_minus_frozen": report.compare_losses(rows, "frozen"),
            "loop_minus_monthly": report.compare_losses(rows, "monthly"),
            "origin": report.trace_prediction(workspace, seed=seed),
            "log_rows": counts.rows,
            "metrics_requests": count_metrics_requests(inference),
            "labels": account.labels,
            "audit_ok": audit.ok,
            "events": audit.events,
            "replay_same": replayed.same,
            "decisions": replayed.decisions,
        }
    result["counts_agree"] = result["requests"] == result["log_rows"] == result["metrics_requests"]
    return result


def count_metrics_requests(inference: str) -> int:
    """Requests to the deployment that ``/metrics`` counted, over all versions, roles that answer, and states."""
    import httpx2

    text = httpx2.get(f"{inference}/metrics", trust_env=False).text
    series = re.findall(
        r'^mainspring_predictions_total\{deployment="delay",([^}]*)\} ([0-9.e+]+)$', text, re.MULTILINE
    )
    return int(sum(float(value) for labels, value in series if 'role="shadow' not in labels))


def _list_opened_alerts(workspace: Workspace, kind: str) -> list[dict[str, Any]]:
    """Events of alerts of one kind being opened."""
    of_kind = {f"alert:{a.id}" for a in workspace.monitoring.list_alerts(kind=kind, limit=1000)}
    return [e for e in report.list_events(workspace, EventKind.ALERT_OPENED) if e["subject"] in of_kind]


def _count_monthly_refits(workspace: Workspace) -> int:
    return sum(m.versions for m in workspace.models.list_models() if m.name == "delay-monthly")
