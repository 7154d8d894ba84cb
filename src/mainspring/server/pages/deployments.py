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
from mainspring.server.charts import Chart, Measured, draw_over_time, draw_then_and_now
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.models import read_reason
from mainspring.server.pages.overview import (
    Standing,
    describe_stage,
    find_running_rollout,
    get_monitor_policy,
    get_standing,
)
from mainspring.server.pages.performance import Quality, draw_quality, get_quality, list_marks
from mainspring.server.pages.rendering import Action, PageRequest, View
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
    events: list[EventText]


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


def gather_deployments(workspace: Workspace, _request: PageRequest) -> DeploymentList:
    return DeploymentList(items=[get_standing(workspace, d) for d in workspace.deploy.list_deployments()])


def gather_deployment(workspace: Workspace, request: PageRequest) -> DeploymentPage:
    name = request.path["name"]
    deployment = workspace.deploy.get_deployment(name=name)
    monitored = name in workspace.monitoring.list_deployments()
    config = workspace.settings.config
    return DeploymentPage(
        standing=get_standing(workspace, deployment),
        counts=workspace.monitoring.get_counts(deployment=name) if monitored else None,
        labels=workspace.labels.get_stats(deployment=name) if monitored else None,
        rollout=find_running_rollout(workspace, name),
        rollouts=workspace.loop.list_rollouts(deployment=name, limit=20),
        jobs=workspace.loop.list_jobs(deployment=name, limit=20),
        routes=workspace.deploy.list_changes(name=name, limit=20),
        policy=config.deploy.get(name),
        reactions=config.retrain.get(name),
        latency=get_quality(workspace, name, "latency_p99_us"),
        traffic=workspace.monitoring.get_series(deployment=name, metric="rows"),
        events=[
            describe_event(e)
            for e in workspace.lineage.list_events(subject=f"deployment:{name}", limit=12).items
        ],
    )


def draw_deployment(page: DeploymentPage) -> dict[str, Chart]:
    drawn = {}
    if page.traffic:
        points = [Measured(p.start, p.value, n=p.n, label=p.scorer) for p in page.traffic]
        drawn["traffic"] = draw_over_time(
            "Rows answered",
            points,
            axis="rows per window",
            marks=list_marks(page.latency, alerts=False),
            zero=True,
        )
    if page.latency.points:
        drawn["latency"] = draw_quality(page.latency)
    return drawn


def gather_monitoring(workspace: Workspace, request: PageRequest) -> MonitoringPage:
    name = request.path["name"]
    workspace.deploy.get_deployment(name=name)
    windows = workspace.monitoring.list_windows(deployment=name, limit=60)
    window = _choose_window(workspace, name, windows, request.text("window"))
    report = window.report if window else None
    columns = [*(report.drift.columns if report and report.drift else [])]
    if report and report.prediction:
        columns.append(report.prediction)
    column = _choose_column(columns, request.text("column"))
    series = workspace.monitoring.get_series(deployment=name, metric=f"psi:{column.column}") if column else []
    return MonitoringPage(
        deployment=name,
        policy=get_monitor_policy(workspace, name),
        windows=windows,
        window=window,
        columns=columns,
        column=column,
        over_time=series,
        quality=get_quality(workspace, name),
        alerts=workspace.monitoring.list_alerts(deployment=name, limit=20),
        findings=workspace.monitoring.list_findings(deployment=name, window=window.id, limit=50)
        if window
        else [],
    )


def _choose_window(
    workspace: Workspace, name: str, windows: list[Window], chosen: str | None
) -> Window | None:
    if chosen is None:
        closed = [w for w in windows if w.report is not None and w.report.drift is not None]
        return closed[0] if closed else (windows[0] if windows else None)
    window = workspace.monitoring.get_window(id=chosen)
    if window.deployment != name:
        raise NotFound("this window is of another deployment", value=chosen)
    return window


def _choose_column(columns: list[ColumnDrift], chosen: str | None) -> ColumnDrift | None:
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


def draw_monitoring(page: MonitoringPage) -> dict[str, Chart]:
    drawn = {}
    if page.quality.points:
        drawn["quality"] = draw_quality(page.quality)
    column = page.column
    if column is not None and column.bins:
        rows = f"{column.n:,} rows now, {column.n_reference:,} then"
        drawn["bins"] = draw_then_and_now(
            f"{column.column}: then and now", column.bins, column.reference, column.current, note=rows
        )
    if column is not None and page.over_time:
        points = [Measured(p.start, p.value, n=p.n, label=p.scorer) for p in page.over_time]
        level = ("limit", column.threshold) if column.threshold is not None else None
        drawn["psi"] = draw_over_time(
            f"{column.column}: size of the drift",
            points,
            axis="PSI",
            marks=list_marks(page.quality, alerts=False),
            level=level,
            zero=True,
            note="population stability index per window",
        )
    return drawn


def rollback(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name = workspace.deploy.get_deployment(name=path["name"]).name
    workspace.loop.rollback(deployment=name, reason=read_reason(fields))
    return f"/deployments/{quote(name, safe='')}"


def retrain(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name = workspace.deploy.get_deployment(name=path["name"]).name
    workspace.loop.request_retrain(deployment=name, reason=read_reason(fields))
    return f"/deployments/{quote(name, safe='')}"


VIEWS = [
    View(
        "/deployments",
        "deployments.html",
        lambda _p: "Deployments",
        gather_deployments,
        command=lambda _p: "mainspring status",
    ),
    View(
        "/deployments/{name}",
        "deployment.html",
        lambda p: p.standing.deployment.name,
        gather_deployment,
        draw_deployment,
        lambda p: f"mainspring loop rollouts --deployment {p.standing.deployment.name}",
        extras=lambda _p: {"describe_stage": describe_stage},
    ),
    View(
        "/deployments/{name}/monitoring",
        "monitoring.html",
        lambda p: f"Monitoring of {p.deployment}",
        gather_monitoring,
        draw_monitoring,
        lambda p: f"mainspring monitor {p.deployment}",
    ),
]
ACTIONS = [
    Action("/deployments/{name}/rollback", "loop.rollback", rollback),
    Action("/deployments/{name}/retrain", "loop.request_retrain", retrain),
]
