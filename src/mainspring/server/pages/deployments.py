"""Deployment: what share of traffic goes where, is it fast, is it right? Monitoring: what drifted, how much, since when?"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from mainspring.errors import NotFound, near
from mainspring.records.base import Record
from mainspring.records.labels import LabelStats
from mainspring.records.loop import DeployPolicy, Job, RetrainPolicy, Rollout
from mainspring.records.monitoring import (
    Alert,
    ColumnDrift,
    Finding,
    MonitorCounts,
    MonitorPolicy,
    SeriesPoint,
    Window,
)
from mainspring.records.serving import RouteChange
from mainspring.server.charts import Chart, Measured, over_time, then_and_now
from mainspring.server.pages.describe import Told, tell
from mainspring.server.pages.models import reason_of
from mainspring.server.pages.overview import Standing, describe_stage, policy_of, running_rollout, standing_of
from mainspring.server.pages.performance import Quality, marks_of, quality_chart, quality_of
from mainspring.server.pages.rendering import Action, Ask, View
from mainspring.workspace import Workspace


class DeploymentList(Record, frozen=True):
    items: list[Standing]


class DeploymentPage(Record, frozen=True):
    standing: Standing
    counts: MonitorCounts | None
    labels: LabelStats | None
    rollout: Rollout | None
    rollouts: list[Rollout]
    jobs: list[Job]
    routes: list[RouteChange]
    policy: DeployPolicy | None
    reactions: RetrainPolicy | None
    latency: Quality
    traffic: list[SeriesPoint]
    events: list[Told]


class MonitoringPage(Record, frozen=True):
    """``columns`` are the drift of the window, the largest effect first, the scores themselves last."""

    deployment: str
    policy: MonitorPolicy | None
    windows: list[Window]
    window: Window | None
    columns: list[ColumnDrift]
    column: ColumnDrift | None
    over_time: list[SeriesPoint]
    """PSI of the chosen column, window by window."""
    quality: Quality
    alerts: list[Alert]
    findings: list[Finding]


def listing(workspace: Workspace, _ask: Ask) -> DeploymentList:
    return DeploymentList(items=[standing_of(workspace, d) for d in workspace.deploy.list_deployments()])


def gather(workspace: Workspace, ask: Ask) -> DeploymentPage:
    name = ask.path["name"]
    found = workspace.deploy.get_deployment(name=name)
    seen = name in workspace.monitoring.list_deployments()
    config = workspace.settings.config
    return DeploymentPage(
        standing=standing_of(workspace, found),
        counts=workspace.monitoring.get_counts(deployment=name) if seen else None,
        labels=workspace.labels.get_stats(deployment=name) if seen else None,
        rollout=running_rollout(workspace, name),
        rollouts=workspace.loop.list_rollouts(deployment=name, limit=20),
        jobs=workspace.loop.list_jobs(deployment=name, limit=20),
        routes=workspace.deploy.list_changes(name=name, limit=20),
        policy=config.deploy.get(name),
        reactions=config.retrain.get(name),
        latency=quality_of(workspace, name, "latency_p99_us"),
        traffic=workspace.monitoring.get_series(deployment=name, metric="rows"),
        events=[tell(e) for e in workspace.lineage.list_events(subject=f"deployment:{name}", limit=12).items],
    )


def charts_of(page: DeploymentPage) -> dict[str, Chart]:
    drawn = {}
    if page.traffic:
        points = [Measured(p.start, p.value, n=p.n, label=p.scorer) for p in page.traffic]
        drawn["traffic"] = over_time(
            "Rows answered",
            points,
            axis="rows per window",
            marks=marks_of(page.latency, alerts=False),
            zero=True,
        )
    if page.latency.points:
        drawn["latency"] = quality_chart(page.latency)
    return drawn


def monitoring(workspace: Workspace, ask: Ask) -> MonitoringPage:
    name = ask.path["name"]
    workspace.deploy.get_deployment(name=name)
    windows = workspace.monitoring.list_windows(deployment=name, limit=60)
    window = _window(workspace, name, windows, ask.text("window"))
    report = window.report if window else None
    columns = [*(report.drift.columns if report and report.drift else [])]
    if report and report.prediction:
        columns.append(report.prediction)
    column = _column(columns, ask.text("column"))
    series = workspace.monitoring.get_series(deployment=name, metric=f"psi:{column.column}") if column else []
    return MonitoringPage(
        deployment=name,
        policy=policy_of(workspace, name),
        windows=windows,
        window=window,
        columns=columns,
        column=column,
        over_time=series,
        quality=quality_of(workspace, name),
        alerts=workspace.monitoring.list_alerts(deployment=name, limit=20),
        findings=workspace.monitoring.list_findings(deployment=name, window=window.id, limit=50)
        if window
        else [],
    )


def _window(workspace: Workspace, name: str, windows: list[Window], chosen: str | None) -> Window | None:
    if chosen is None:
        closed = [w for w in windows if w.report is not None and w.report.drift is not None]
        return closed[0] if closed else (windows[0] if windows else None)
    found = workspace.monitoring.get_window(id=chosen)
    if found.deployment != name:
        raise NotFound("this window is of another deployment", value=chosen)
    return found


def _column(columns: list[ColumnDrift], chosen: str | None) -> ColumnDrift | None:
    if chosen is None:
        return columns[0] if columns else None
    for column in columns:
        if column.column == chosen:
            return column
    if not columns:
        return None
    raise NotFound(
        "no such column in this window",
        value=chosen,
        next_step=near(chosen, [c.column for c in columns], what="column"),
    )


def monitoring_charts(page: MonitoringPage) -> dict[str, Chart]:
    drawn = {}
    if page.quality.points:
        drawn["quality"] = quality_chart(page.quality)
    column = page.column
    if column is not None and column.bins:
        rows = f"{column.n:,} rows now, {column.n_reference:,} then"
        drawn["bins"] = then_and_now(
            f"{column.column}: then and now", column.bins, column.reference, column.current, note=rows
        )
    if column is not None and page.over_time:
        points = [Measured(p.start, p.value, n=p.n, label=p.scorer) for p in page.over_time]
        level = ("limit", column.threshold) if column.threshold is not None else None
        drawn["psi"] = over_time(
            f"{column.column}: size of the drift",
            points,
            axis="PSI",
            marks=marks_of(page.quality, alerts=False),
            level=level,
            zero=True,
            note="population stability index per window",
        )
    return drawn


def rollback(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name = workspace.deploy.get_deployment(name=path["name"]).name
    workspace.loop.rollback(deployment=name, reason=reason_of(fields))
    return f"/deployments/{quote(name, safe='')}"


def retrain(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name = workspace.deploy.get_deployment(name=path["name"]).name
    workspace.loop.request_retrain(deployment=name, reason=reason_of(fields))
    return f"/deployments/{quote(name, safe='')}"


VIEWS = [
    View(
        "/deployments",
        "deployments.html",
        lambda _p: "Deployments",
        listing,
        command=lambda _p: "mainspring status",
    ),
    View(
        "/deployments/{name}",
        "deployment.html",
        lambda p: p.standing.deployment.name,
        gather,
        charts_of,
        lambda p: f"mainspring loop rollouts --deployment {p.standing.deployment.name}",
        extras=lambda _p: {"describe_stage": describe_stage},
    ),
    View(
        "/deployments/{name}/monitoring",
        "monitoring.html",
        lambda p: f"Monitoring of {p.deployment}",
        monitoring,
        monitoring_charts,
        lambda p: f"mainspring monitor {p.deployment}",
    ),
]
ACTIONS = [
    Action("/deployments/{name}/rollback", "loop.rollback", rollback),
    Action("/deployments/{name}/retrain", "loop.request_retrain", retrain),
]
