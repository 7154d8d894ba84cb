"""Models: which version serves, since when and why, and how is it doing?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from markupsafe import Markup

from mainspring.errors import InvalidInput
from mainspring.records.base import Record
from mainspring.records.loop import Verdict
from mainspring.records.models import AliasEvent, Approval, Card, ModelInfo, ModelVersion
from mainspring.records.monitoring import BlastRadius
from mainspring.server.charts import Chart, Span, draw_spans
from mainspring.server.pages.describe import EventText, describe_event
from mainspring.server.pages.performance import Quality, draw_quality, get_quality
from mainspring.server.pages.rendering import Action, PageRequest, View
from mainspring.workspace import Workspace


class ModelList(Record, frozen=True):
    items: list[ModelInfo]


class ModelPage(Record, frozen=True):
    """A model: its versions and aliases, and how what serves is doing."""

    now: datetime
    info: ModelInfo
    champion: ModelVersion | None
    set_by: AliasEvent | None
    """The event that made it champion."""
    deployments: list[str]
    history: list[AliasEvent]
    """All moves of all aliases, oldest first."""
    versions: list[ModelVersion]
    more: str | None
    verdicts: dict[str, Verdict]
    """The newest verdict of each version shown."""
    metrics: list[str]
    quality: list[Quality]
    events: list[EventText]


class VersionPage(Record, frozen=True):
    version: ModelVersion
    aliases: list[str]
    card: Card
    approvals: list[Approval]
    verdicts: list[Verdict]
    radius: BlastRadius
    deployments: list[str]
    objections: list[str]
    events: list[EventText]


def gather_models(workspace: Workspace, _request: PageRequest) -> ModelList:
    return ModelList(items=workspace.models.list_models())


def gather_model(workspace: Workspace, request: PageRequest) -> ModelPage:
    ops, name = workspace.models, request.path["model"]
    versions = ops.list_versions(model=name, limit=50, after=request.text("after"))
    info = next(m for m in ops.list_models() if m.name == name)
    number = info.aliases.get("champion")
    history = ops.list_alias_moves(model=name)
    serving = list_deployments_of(workspace, name)
    verdicts: dict[str, Verdict] = {}
    for verdict in workspace.loop.list_verdicts(model=name, limit=200):
        verdicts.setdefault(str(verdict.version), verdict)
    shown = [
        *dict.fromkeys(
            k for v in versions.items for k in v.metrics if not k.endswith((".low", ".high", "_low", "_high"))
        )
    ]
    return ModelPage(
        now=workspace.loop.get_clock(),
        info=info,
        champion=ops.get_version(model=name, selector=str(number)) if number is not None else None,
        set_by=next((e for e in reversed(history) if e.alias == "champion"), None),
        deployments=serving,
        history=history,
        versions=versions.items,
        more=versions.next,
        verdicts=verdicts,
        metrics=shown[:4],
        quality=[get_quality(workspace, d) for d in serving],
        events=[
            describe_event(e) for e in workspace.lineage.list_events(subject=f"model:{name}", limit=10).items
        ],
    )


def list_deployments_of(workspace: Workspace, model: str) -> list[str]:
    """Deployments in which the model answers."""
    return [d.name for d in workspace.deploy.list_deployments() if any(t.model == model for t in d.targets)]


def draw_model(page: ModelPage) -> dict[str, Chart]:
    drawn = {f"quality-{i}": draw_quality(q) for i, q in enumerate(page.quality) if q.points}
    if page.history:
        drawn["aliases"] = draw_spans(
            "Which version held which alias", build_spans(page.history), until=page.now, lane="alias"
        )
    return drawn


def build_spans(history: list[AliasEvent]) -> list[Span]:
    """The periods in which a version held an alias, from the alias moves, oldest first; the newest 60."""
    past: list[Span] = []
    current: dict[str, AliasEvent] = {}
    for event in [*history]:
        ended = current.pop(event.alias, None)
        if ended is not None:
            past.append(_build_span(ended, event.at, len(past)))
        if event.version is not None:
            current[event.alias] = event
    past += [_build_span(e, None, len(past)) for e in current.values()]
    return sorted(past, key=lambda s: (s.lane != "champion", s.lane, s.start))[-60:]


def _build_span(event: AliasEvent, end: datetime | None, order: int) -> Span:
    tones = ("now", "shadow")
    return Span(
        event.alias,
        event.at,
        end,
        f"version {event.version}",
        event.reason,
        tones[(event.version or 0) % 2],
        order,
    )


def gather_version(workspace: Workspace, request: PageRequest) -> VersionPage:
    ops, name = workspace.models, request.path["model"]
    record = ops.get_version(model=name, selector=request.path["version"])
    number = record.version
    info = next(m for m in ops.list_models() if m.name == name)
    return VersionPage(
        version=record,
        aliases=[a for a, v in info.aliases.items() if v == number],
        card=ops.get_card(model=name, version=number),
        approvals=ops.list_approvals(model=name, version=number),
        verdicts=workspace.loop.list_verdicts(model=name, version=number),
        radius=workspace.monitoring.get_blast_radius(model=name, version=number),
        deployments=list_deployments_of(workspace, name),
        objections=ops.list_objections(model=name, version=number),
        events=[
            describe_event(e)
            for e in workspace.lineage.list_events(subject=f"model_version:{name}@{number}", limit=20).items
        ],
    )


class VerdictPage(Record, frozen=True):
    verdict: Verdict


def gather_verdict(workspace: Workspace, request: PageRequest) -> VerdictPage:
    return VerdictPage(verdict=workspace.loop.get_verdict(verdict=request.path["verdict"]))


def render_card(page: VersionPage) -> Markup:
    """The card's HTML without its title, which the page shows itself. The models room has escaped all values in it."""
    html = re.sub(r"<h1[^>]*>.*?</h1>", "", page.card.html, count=1, flags=re.DOTALL)
    return Markup(html)  # noqa: S704 - Card.html is promised to be one escaped fragment; B04 tests it


def promote(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    """Make a version the champion and give it all traffic where the policy deploys its model: as ``mainspring models promote``."""
    ops, name, reason = workspace.models, path["model"], read_reason(fields)
    number = ops.get_version(model=name, selector=path["version"]).version
    ops.set_alias(
        model=name,
        alias="champion",
        version=number,
        reason=reason,
        override=fields.get("override") == "yes",
    )
    for deployment in list_bound_deployments(workspace, name):
        workspace.deploy.deploy(deployment=deployment, model=name, version=number, reason=reason)
    return f"/models/{name}"


def list_bound_deployments(workspace: Workspace, model: str) -> list[str]:
    """Deployments that the policy binds to a model."""
    return [n for n, p in workspace.settings.config.deploy.items() if p.model == model]


def approve(workspace: Workspace, path: Mapping[str, str], fields: Mapping[str, str]) -> str:
    name = path["model"]
    number = workspace.models.get_version(model=name, selector=path["version"]).version
    workspace.models.approve(
        model=name,
        version=number,
        reason=read_reason(fields),
        approved=fields.get("approved") == "yes",
    )
    return f"/models/{name}/versions/{number}"


def read_reason(fields: Mapping[str, str]) -> str:
    """The reason in a form; raises :class:`InvalidInput` without one or for more than 500 characters."""
    reason = fields.get("reason", "").strip()
    if not reason or len(reason) > 500:
        raise InvalidInput(
            "a reason is needed: 1 to 500 characters",
            value=reason,
            place="reason",
            next_step="Go back and say why.",
        )
    return reason


VIEWS = [
    View(
        "/models",
        "models.html",
        lambda _p: "Models",
        gather_models,
        command=lambda _p: "mainspring models list",
    ),
    View(
        "/models/{model}",
        "model.html",
        lambda p: p.info.name,
        gather_model,
        draw_model,
        lambda p: f"mainspring models history {p.info.name}",
    ),
    View(
        "/models/{model}/versions/{version}",
        "version.html",
        lambda p: f"{p.version.model} version {p.version.version}",
        gather_version,
        command=lambda p: f"mainspring models card {p.version.model} {p.version.version}",
        extras=lambda p: {"card": render_card(p)},
    ),
    View(
        "/verdicts/{verdict}",
        "verdict.html",
        lambda p: f"Gate of {p.verdict.model} version {p.verdict.version}",
        gather_verdict,
    ),
]
ACTIONS = [
    Action("/models/{model}/versions/{version}/promote", "models.set_alias", promote),
    Action("/models/{model}/versions/{version}/approve", "models.approve", approve),
]
