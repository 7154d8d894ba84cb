"""What each room knows about its things, for the lineage graph: short facts, and edges that are known by rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import convert

from mainspring.errors import MainspringError
from mainspring.lineage.sources import GraphSources
from mainspring.loop.rows import audit_verdicts
from mainspring.models.objections import audit as audit_models
from mainspring.records.base import from_json
from mainspring.records.tracking import CodeState, EnvironmentState

if TYPE_CHECKING:
    from mainspring.lineage import Foundation

Facts = dict[str, object]


def graph_sources(base: Foundation, room: Callable[[str], Any]) -> GraphSources:
    """What the rooms of a workspace know about their things, for its lineage. ``room`` gives a room's operations by name."""
    from mainspring.monitoring import rows as predictions

    sources = GraphSources()
    sources.add(
        "prediction",
        causes=lambda i: predictions.list_prediction_causes(base, i),
        facts=lambda i: predictions.read_prediction_facts(base, i),
    )
    sources.add(
        "model_version",
        effects=lambda i: predictions.list_prediction_effects(base, i),
        facts=_none_if_missing(lambda i: _model_version_facts(room, i)),
    )
    sources.add("model", auditor=lambda tx: audit_models(tx, base))
    sources.add("code", facts=_none_if_missing(lambda i: _code_facts(base, i)))
    sources.add("environment", facts=_none_if_missing(lambda i: _environment_facts(base, i)))
    sources.add("dataset_version", facts=_none_if_missing(lambda i: _dataset_version_facts(room, i)))
    sources.add("run", facts=_none_if_missing(lambda i: _run_facts(room, i)))
    sources.add(
        "verdict",
        facts=_none_if_missing(lambda i: _verdict_facts(room, i)),
        auditor=lambda tx: audit_verdicts(tx, base.project),
    )
    sources.add("deployment", facts=_none_if_missing(lambda i: _deployment_facts(room, i)))
    return sources


def _none_if_missing(read: Callable[[str], Facts]) -> Callable[[str], Facts | None]:
    """``read``, with None for a thing that was deleted or never existed: the walk over the graph goes on without its facts."""

    def read_or_none(ident: str) -> Facts | None:
        try:
            return read(ident)
        except MainspringError:
            return None

    return read_or_none


def _model_version_facts(room: Callable[[str], Any], ident: str) -> Facts:
    model, _, number = ident.rpartition("@")
    version = room("models").get_version(model=model, selector=number)
    return _known_facts(
        model=version.model,
        version=version.version,
        created=version.created_at.isoformat(),
        package=version.package,
        format=version.format,
        **_round_metrics(version.metrics),
    )


def _dataset_version_facts(room: Callable[[str], Any], ident: str) -> Facts:
    version = room("data").get_version_by_id(id=ident)
    return _known_facts(
        dataset=version.dataset,
        number=version.number,
        rows=version.rows,
        bytes=version.bytes,
        message=version.message,
        created=version.created_at.isoformat(),
    )


def _code_facts(base: Foundation, ident: str) -> Facts:
    """A code record (what a run was captured with), or the definitions that a step is made of."""
    from mainspring.lineage.uploads import owned_size

    owned_size(base, ident)
    document: dict[str, Any] = from_json(base.objects.read(ident), dict[str, Any])
    if "files" not in document and "missing" not in document:
        files = sorted({label.rpartition(":")[0] for label in document} - {""})
        return _known_facts(definitions=len(document), files=_list_few(files))
    state: CodeState = convert(document, CodeState)
    return _known_facts(
        commit=state.commit,
        dirty=state.dirty if state.commit else None,
        files=_list_few([f.path for f in state.files if f.digest]),
        missing="; ".join(state.missing),
    )


def _environment_facts(base: Foundation, ident: str) -> Facts:
    from mainspring.lineage.uploads import owned_size

    owned_size(base, ident)
    state: EnvironmentState = from_json(base.objects.read(ident), EnvironmentState)
    return _known_facts(
        python=state.python, platform=f"{state.platform} {state.machine}", packages=len(state.packages)
    )


def _list_few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _run_facts(room: Callable[[str], Any], ident: str) -> Facts:
    run = room("tracking").get_run(run=ident)
    return _known_facts(experiment=run.experiment, name=run.name, status=run.status, by=run.created_by)


def _verdict_facts(room: Callable[[str], Any], ident: str) -> Facts:
    verdict = room("loop").get_verdict(verdict=ident)
    return _known_facts(passed=verdict.passed, champion=verdict.champion, at=verdict.at.isoformat())


def _deployment_facts(room: Callable[[str], Any], ident: str) -> Facts:
    deployment = room("deploy").get_deployment(name=ident)
    return _known_facts(
        targets=", ".join(f"{t.model}@{t.version} {t.weight:.0%}" for t in deployment.targets)
    )


def _known_facts(**facts: Any) -> Facts:
    """The facts that have a value."""
    return {k: v for k, v in facts.items() if v not in {None, ""}}


def _round_metrics(metrics: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in list(metrics.items())[:5]}
