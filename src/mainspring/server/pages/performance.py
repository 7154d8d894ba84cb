"""Quality of a deployment over time, with what happened to it: shared by the model, deployment and monitoring pages."""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.events import EventKind
from mainspring.records.models import AliasEvent, ModelVersion
from mainspring.records.monitoring import Alert, SeriesPoint
from mainspring.server.charts import Chart, Mark, Measured, over_time
from mainspring.server.pages.describe import Told, tell
from mainspring.server.pages.overview import metric_of, policy_of
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
    """A metric per window and scorer. ``roles`` tells for each point whether it was champion, canary or shadow."""

    deployment: str
    metric: str
    points: list[SeriesPoint]
    roles: list[str]
    events: list[Told]
    alerts: list[Alert]
    level: float | None = None
    """What it is measured against: the policy's reference, or the figure recorded with the champion."""


def quality_of(workspace: Workspace, deployment: str, metric: str | None = None) -> Quality:
    """The metric's history, at most 1,000 points, with decisions and alerts."""
    found = workspace.deploy.get_deployment(name=deployment)
    policy = policy_of(workspace, deployment)
    name = metric or metric_of(policy, found.signature.task)
    champion = next((t for t in found.targets if t.role == "champion"), found.targets[0])
    points = workspace.monitoring.get_series(deployment=deployment, metric=name)
    history = workspace.models.list_alias_moves(model=champion.model, alias="champion")
    version = workspace.models.get_version(model=champion.model, selector=str(champion.version))
    decided = workspace.lineage.list_events(subject=f"deployment:{deployment}", kind="loop.", limit=500).items
    return Quality(
        deployment=deployment,
        metric=name,
        points=points,
        roles=[_role(p, history) for p in points],
        events=[tell(e) for e in decided if e.kind in _SHOWN],
        alerts=workspace.monitoring.list_alerts(deployment=deployment, limit=100),
        level=_level(policy.reference if policy and name == policy.metric else None, version, name),
    )


def _level(reference: float | None, version: ModelVersion, metric: str) -> float | None:
    if reference is not None:
        return reference
    return next(
        (version.metrics[k] for k in (metric, f"holdout.{metric}", f"test.{metric}") if k in version.metrics),
        None,
    )


def _role(point: SeriesPoint, history: list[AliasEvent]) -> str:
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


def marks_of(quality: Quality, *, alerts: bool = True) -> list[Mark]:
    """Decisions, and alerts of drift and performance (those of single columns' data quality would hide them), on the time axis."""
    marks = [Mark(t.event.at, t.words, t.detail, _SHOWN[t.event.kind]) for t in quality.events]
    if alerts:
        marks += [
            Mark(a.opened_at, f"alert: {a.kind} of {a.subject}", a.detail, "warn")
            for a in quality.alerts
            if a.kind != "quality"
        ]
    return marks


def quality_chart(quality: Quality) -> Chart:
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
    return over_time(
        f"{unit[:1].upper()}{unit[1:]} of {quality.deployment}",
        points,
        axis=unit,
        marks=marks_of(quality),
        level=level,
        note="per window, with 95 % interval where labels allow"
        if any(p.low is not None for p in quality.points)
        else "per window",
    )
