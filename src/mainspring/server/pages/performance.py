"""Quality of a deployment over time, with what happened to it: shared by the model, deployment and monitoring pages."""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import EventKind
from mainspring.records.models import AliasEvent, ModelVersion
from mainspring.records.monitoring import Alert, SeriesPoint
from mainspring.server.charts import Chart, Mark, Measured, draw_over_time
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.overview import choose_metric, get_monitor_policy
from mainspring.workspace import Workspace

UNITS = {
    "log_loss": "log loss (nats)",
    "auc": "AUC",
    "brier": "Brier score",
    "latency_p99_us": "99th percentile latency (µs)",
    "rows": "rows per window",
    "errors": "failed requests per window",
    "score_mean": "mean score",
}
_SHOWN: dict[str, str] = {
    EventKind.LOOP_PROMOTE: "good",
    EventKind.LOOP_ROLLBACK: "bad",
    EventKind.LOOP_GATE_STOP: "bad",
    EventKind.LOOP_RETRAIN: "idle",
    EventKind.LOOP_ABANDON: "warn",
}


class Quality(Record, frozen=True):
    """A metric per window and scorer. ``roles`` holds for each point which series it belongs to: ``now`` (champion), ``other``
    (canary) or ``shadow``."""

    deployment: str
    metric: str
    points: list[SeriesPoint]
    roles: list[str]
    events: list[EventText]
    alerts: list[Alert]
    level: float | None = None
    """The value to compare with: the policy's reference, or the value recorded with the champion."""


def get_quality(workspace: Workspace, deployment: str, metric: str | None = None) -> Quality:
    """The metric's history, at most 1,000 points, with decisions and alerts."""
    record = workspace.deploy.get_deployment(name=deployment)
    policy = get_monitor_policy(workspace, deployment)
    name = metric or choose_metric(policy, record.signature)
    champion = next((t for t in record.targets if t.role == "champion"), record.targets[0])
    points = workspace.monitoring.get_series(deployment=deployment, metric=name)
    history = workspace.models.list_alias_moves(model=champion.model, alias="champion")
    version = workspace.models.get_version(model=champion.model, selector=str(champion.version))
    decisions = workspace.lineage.list_events(
        subject=f"deployment:{deployment}", kind="loop.", limit=500
    ).items
    return Quality(
        deployment=deployment,
        metric=name,
        points=points,
        roles=[_role_of(p, history) for p in points],
        events=[describe_event(e) for e in decisions if e.kind in _SHOWN],
        alerts=workspace.monitoring.list_alerts(deployment=deployment, limit=100),
        level=_reference_level(policy.reference if policy and name == policy.metric else None, version, name),
    )


def _reference_level(reference: float | None, version: ModelVersion, metric: str) -> float | None:
    if reference is not None:
        return reference
    return next(
        (version.metrics[k] for k in (metric, f"holdout.{metric}", f"test.{metric}") if k in version.metrics),
        None,
    )


def _role_of(point: SeriesPoint, history: list[AliasEvent]) -> str:
    if point.scorer.startswith("shadow:"):
        return "shadow"
    if not point.scorer.isdigit():  # a quantity of the whole window
        return "now"
    champion = None
    for event in history:
        if event.at > point.start:
            break
        champion = event.version
    return "now" if champion is None or champion == int(point.scorer) else "other"


def list_marks(quality: Quality, *, alerts: bool = True) -> list[Mark]:
    """Decisions and alerts as marks on the time axis. Alerts of data quality are left out: there may be one per column."""
    marks = [Mark(t.event.at, t.words, t.detail, _SHOWN[t.event.kind]) for t in quality.events]
    if alerts:
        marks += [
            Mark(a.opened_at, f"alert: {a.kind} of {a.subject}", a.detail, "warn")
            for a in quality.alerts
            if a.kind != "quality"
        ]
    return marks


def draw_quality(quality: Quality) -> Chart:
    """The metric over time."""
    unit = UNITS.get(quality.metric, quality.metric.replace("_", " "))
    points = [
        Measured(
            p.start,
            p.value,
            p.low,
            p.high,
            p.n,
            f"version {p.scorer}" if p.scorer.isdigit() else p.scorer,
            role,
        )
        for p, role in zip(quality.points, quality.roles, strict=True)
    ]
    level = (
        (f"recorded {quality.metric.replace('_', ' ')}", quality.level) if quality.level is not None else None
    )
    return draw_over_time(
        f"{unit[:1].upper()}{unit[1:]} of {quality.deployment}",
        points,
        axis=unit,
        marks=list_marks(quality),
        level=level,
        note="per window, with 95 % interval where labels allow"
        if any(p.low is not None for p in quality.points)
        else "per window",
    )
