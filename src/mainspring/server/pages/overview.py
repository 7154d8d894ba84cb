"""Overview: is the loop healthy right now, and what needs me?"""

from __future__ import annotations

from datetime import datetime

from mainspring.records.base import Record
from mainspring.records.data import CheckReport, DatasetInfo
from mainspring.records.events import EventKind
from mainspring.records.loop import Job, JobState, Rollout, RolloutState, Stage
from mainspring.records.models import ModelInfo, Signature
from mainspring.records.monitoring import Alert, MonitorPolicy, SeriesPoint, Verdict, Window
from mainspring.records.scores import default_metric, meaning_of
from mainspring.records.serving import Deployment
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.rendering import PageRequest, View
from mainspring.server.pages.text import number
from mainspring.workspace import Workspace


class Health(Record, frozen=True):
    """One aspect of a deployment. ``tone`` is good, warn, bad or idle."""

    aspect: str
    tone: str
    word: str
    detail: str = ""


class Standing(Record, frozen=True):
    """One deployment, in one line."""

    deployment: Deployment
    model: str
    champion: int | None
    since: datetime | None
    requests: int
    """In the newest window with traffic."""
    window: Window | None
    health: list[Health]
    metric: str
    recent: list[SeriesPoint]
    """The metric of what answered, the newest 30 windows, oldest first."""
    last: EventText | None
    next: str
    next_tone: str


class Need(Record, frozen=True):
    """Something that needs a person's attention. ``at`` is the address of a page."""

    tone: str
    what: str
    detail: str
    at: str
    when: datetime


class Overview(Record, frozen=True):
    now: datetime
    standings: list[Standing]
    idle_models: list[ModelInfo]
    """Registered models that no deployment serves."""
    needs: list[Need]
    recent: list[EventText]
    followed: bool = True
    """Whether this server has the policy of the project, and so follows its deployments."""


def gather(workspace: Workspace, _request: PageRequest) -> Overview:
    followed = workspace.settings.policy
    standings = [get_standing(workspace, d) for d in workspace.deploy.list_deployments()] if followed else []
    served = {s.model for s in standings}
    return Overview(
        now=workspace.loop.get_clock(),
        standings=standings,
        idle_models=[m for m in workspace.models.list_models() if m.name not in served],
        needs=_list_needs(workspace, standings),
        recent=_list_recent_events(workspace),
        followed=followed,
    )


def _list_recent_events(workspace: Workspace) -> list[EventText]:
    """The newest events that somebody decided or that change what is served."""
    shown = [
        e
        for kind in ("loop.", "alert.", "model.", "deployment.", "dataset.")
        for e in workspace.lineage.list_events(kind=kind, limit=8).items
    ]
    return [describe_event(e) for e in sorted(shown, key=lambda e: -e.seq)[:8]]


def get_standing(workspace: Workspace, deployment: Deployment) -> Standing:
    """The state of a deployment now: champion, traffic, health and next step."""
    name = deployment.name
    champion = next((t for t in deployment.targets if t.role == "champion"), deployment.targets[0])
    aliases = workspace.models.list_aliases(model=champion.model)
    alias = next((a for a in aliases if a.alias == "champion" and a.version == champion.version), None)
    history = workspace.deploy.list_changes(name=name, limit=1)
    windows = workspace.monitoring.list_windows(deployment=name, limit=14)
    window = next((w for w in windows if w.requests), windows[0] if windows else None)
    alerts = workspace.monitoring.list_alerts(deployment=name, state="open")
    metric = choose_metric(get_monitor_policy(workspace, name), deployment.signature)
    points = workspace.monitoring.get_series(deployment=name, metric=metric)
    decisions = workspace.lineage.list_events(subject=f"deployment:{name}", kind="loop.", limit=1).items
    last = describe_event(decisions[0]) if decisions else None
    tone, step = describe_next(workspace, name, last, alerts)
    return Standing(
        deployment=deployment,
        model=champion.model,
        champion=champion.version,
        since=alias.at if alias else (history[0].at if history else None),
        requests=window.requests if window else 0,
        window=window,
        health=assess_health(alerts, window, windows),
        metric=metric,
        recent=[p for p in points if not p.scorer.startswith("shadow:")][-30:],
        last=last,
        next=step,
        next_tone=tone,
    )


def get_monitor_policy(workspace: Workspace, deployment: str) -> MonitorPolicy | None:
    """The monitoring policy of a deployment; None if this server has no policy of the project and so does not monitor it."""
    return workspace.monitoring.get_policy(deployment=deployment) if workspace.settings.policy else None


def choose_metric(policy: MonitorPolicy | None, signature: Signature) -> str:
    """The metric by which a deployment is monitored; without a policy, the usual one for its task and its scores."""
    return (policy.metric if policy else None) or default_metric(signature.task, meaning_of(signature))


def assess_health(alerts: list[Alert], window: Window | None, windows: list[Window]) -> list[Health]:
    """Data, drift and quality of predictions: open alerts first, else the newest window with a verdict.

    Quality may be of an earlier window than drift, since labels arrive later.
    """
    report = window.report if window else None
    drift = report.drift.verdict if report and report.drift else None
    decay = next(
        (
            w.report.decay.verdict
            for w in windows
            if w.report and w.report.decay and w.report.decay.value is not None
        ),
        None,
    )
    rows: list[tuple[str, str, Verdict | None]] = [
        ("data", "quality", Verdict.OK if window and window.state == "closed" else None),
        ("drift", "drift", drift),
        ("quality", "performance", decay),
    ]
    return [
        _assess_aspect(aspect, [a for a in alerts if a.kind == kind], verdict)
        for aspect, kind, verdict in rows
    ]


def _assess_aspect(aspect: str, alerts: list[Alert], verdict: Verdict | None) -> Health:
    if alerts:
        subjects = ", ".join(dict.fromkeys(a.subject for a in alerts))
        return Health(
            aspect=aspect, tone="warn", word=f"alert: {subjects}", detail="; ".join(a.detail for a in alerts)
        )
    match verdict:
        case Verdict.OK:
            return Health(aspect=aspect, tone="good", word="ok")
        case Verdict.DRIFT | Verdict.DECAY:
            return Health(aspect=aspect, tone="warn", word=str(verdict.value))
        case Verdict.INSUFFICIENT_DATA:
            return Health(aspect=aspect, tone="idle", word="too little data")
        case Verdict.NOT_COMPUTABLE:
            return Health(aspect=aspect, tone="idle", word="not computable")
    return Health(aspect=aspect, tone="idle", word="no data yet")


def describe_next(
    workspace: Workspace, name: str, last: EventText | None, alerts: list[Alert]
) -> tuple[str, str]:
    """What happens next with a deployment: ``(tone, words)``."""
    if last and last.event.kind == EventKind.LOOP_NEEDS_HUMAN:
        return "warn", f"needs you: {last.detail}"
    rollout = find_running_rollout(workspace, name)
    if rollout is not None:
        return "busy", describe_rollout(rollout)
    job = find_newest_job(workspace, name)
    if job is not None and job.state in {JobState.QUEUED, JobState.RUNNING}:
        return "busy", f"retraining {job.state.value}: {job.reason}"
    if alerts:
        return "warn", f"{len(alerts)} open {'alert' if len(alerts) == 1 else 'alerts'}, watched by the loop"
    return "good", "nothing to do"


def find_running_rollout(workspace: Workspace, name: str) -> Rollout | None:
    """The rollout under way, if any."""
    return next(
        (
            r
            for r in workspace.loop.list_rollouts(deployment=name, limit=1)
            if r.state is RolloutState.RUNNING
        ),
        None,
    )


def find_newest_job(workspace: Workspace, name: str) -> Job | None:
    """The newest retraining, if any."""
    return next(iter(workspace.loop.list_jobs(deployment=name, limit=1)), None)


def describe_rollout(rollout: Rollout) -> str:
    """The stage that a rollout has reached, in words."""
    if rollout.stage >= len(rollout.stages):
        return f"version {rollout.version}: last stage"
    return f"version {rollout.version}: {describe_stage(rollout.stages[rollout.stage])}, stage {rollout.stage + 1} of {len(rollout.stages)}"


def describe_stage(stage: Stage) -> str:
    """A stage in words, with the evidence that ends it."""
    kind = (
        "shadow"
        if stage.shadow
        else f"canary at {number((stage.canary or 0) * 100)} %"
        if stage.canary
        else "full traffic"
    )
    needs = [
        f"{n:,} {what}" for n, what in ((stage.min_requests, "requests"), (stage.min_labels, "labels")) if n
    ]
    return kind + (f" until {' and '.join(needs)}" if needs else "")


def _list_needs(workspace: Workspace, standings: list[Standing]) -> list[Need]:
    needs = []
    for s in standings:
        name = s.deployment.name
        if s.last and s.last.event.kind == EventKind.LOOP_NEEDS_HUMAN:
            needs.append(
                Need(
                    tone="warn",
                    what=f"{name} waits for a person",
                    detail=s.last.detail,
                    at=f"/deployments/{name}",
                    when=s.last.event.at,
                )
            )
        job = find_newest_job(workspace, name)
        if job is not None and job.state is JobState.FAILED:
            at = f"/runs/{job.run}" if job.run else f"/deployments/{name}"
            needs.append(
                Need(
                    tone="bad",
                    what=f"Retraining of {name} failed",
                    detail=job.error or "",
                    at=at,
                    when=job.finished_at or job.requested_at,
                )
            )
    needs += [
        Need(
            tone="warn",
            what=f"{_KINDS.get(a.kind, a.kind)} of {a.subject} in {a.deployment}",
            detail=a.detail,
            at=f"/deployments/{a.deployment}/monitoring?column={a.subject}"
            if a.kind == "drift"
            else f"/deployments/{a.deployment}/monitoring",
            when=a.opened_at,
        )
        for a in workspace.monitoring.list_alerts(state="open", limit=10)
    ]
    refused = [_find_open_refusal(workspace, d) for d in workspace.data.operations.list_datasets()]
    return needs + [_describe_refusal(r) for r in refused if r is not None]


def _describe_refusal(report: CheckReport) -> Need:
    broken = [f for f in report.findings if not f.passed]
    return Need(
        tone="bad",
        what=f"A batch of {report.dataset} was refused",
        detail=report.damaged or "; ".join(f.reason for f in broken),
        at=f"/data/{report.dataset}",
        when=report.at,
    )


def _find_open_refusal(workspace: Workspace, dataset: DatasetInfo) -> CheckReport | None:
    """The newest refusal, unless a good version has followed it."""
    refusals = workspace.data.operations.list_refusals(dataset=dataset.name, limit=1)
    return refusals[0] if refusals and refusals[0].at >= dataset.updated_at else None


_KINDS = {"drift": "Drift", "quality": "Data quality", "performance": "Quality"}

VIEW = View("/", "overview.html", lambda _p: "Overview", gather, command=lambda _p: "mainspring status")
