"""What each room tells the lineage graph about its things: short facts, and edges that are known by rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import convert

from mainspring.errors import MainspringError
from mainspring.loop.rows import audit_verdicts
from mainspring.models.objections import audit as audit_models
from mainspring.records.base import from_json
from mainspring.records.tracking import CodeState, EnvironmentState

if TYPE_CHECKING:
    from mainspring.lineage import Lineage
    from mainspring.workspace import Workspace

Facts = dict[str, object]


def introduce(lineage: Lineage, workspace: Workspace) -> None:
    """Introduce the rooms of ``workspace`` to its lineage."""
    monitoring = workspace.room("monitoring")
    told = lineage._introduce  # noqa: SLF001 - this module is who calls it
    told("prediction", causes=monitoring._prediction_causes, facts=monitoring._prediction_facts)  # noqa: SLF001
    told(
        "model_version",
        effects=monitoring._version_effects,  # noqa: SLF001
        facts=_safe(lambda i: _model_version(workspace, i)),
    )
    told("model", auditor=lambda tx: audit_models(tx, workspace.base))
    told("code", facts=_safe(lambda i: _code(workspace, i)))
    told("environment", facts=_safe(lambda i: _environment(workspace, i)))
    told("dataset_version", facts=_safe(lambda i: _dataset_version(workspace, i)))
    told("run", facts=_safe(lambda i: _run(workspace, i)))
    told(
        "verdict",
        facts=_safe(lambda i: _verdict(workspace, i)),
        auditor=lambda tx: audit_verdicts(tx, workspace.base.project),
    )
    told("deployment", facts=_safe(lambda i: _deployment(workspace, i)))


def _safe(look: Callable[[str], Facts]) -> Callable[[str], Facts | None]:
    """A thing that was deleted, or never was, has no facts: the walk goes on."""

    def found(ident: str) -> Facts | None:
        try:
            return look(ident)
        except MainspringError:
            return None

    return found


def _model_version(workspace: Workspace, ident: str) -> Facts:
    model, _, number = ident.rpartition("@")
    found = workspace.room("models").get_version(model=model, selector=number)
    return _given(
        model=found.model,
        version=found.version,
        created=found.created_at.isoformat(),
        package=found.package,
        format=found.format,
        **_rounded(found.metrics),
    )


def _dataset_version(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("data").get_version_by_id(id=ident)
    return _given(
        dataset=found.dataset,
        number=found.number,
        rows=found.rows,
        bytes=found.bytes,
        message=found.message,
        created=found.created_at.isoformat(),
    )


def _code(workspace: Workspace, ident: str) -> Facts:
    """A code record (what a run was captured with), or the definitions that a step is made of."""
    from mainspring.lineage.uploads import owned_size

    owned_size(workspace.base, ident)
    document: dict[str, Any] = from_json(workspace.base.objects.read(ident), dict[str, Any])
    if "files" not in document and "missing" not in document:
        files = sorted({label.rpartition(":")[0] for label in document} - {""})
        return _given(definitions=len(document), files=_few(files))
    found: CodeState = convert(document, CodeState)
    return _given(
        commit=found.commit,
        dirty=found.dirty if found.commit else None,
        files=_few([f.path for f in found.files if f.digest]),
        missing="; ".join(found.missing),
    )


def _environment(workspace: Workspace, ident: str) -> Facts:
    from mainspring.lineage.uploads import owned_size

    owned_size(workspace.base, ident)
    found: EnvironmentState = from_json(workspace.base.objects.read(ident), EnvironmentState)
    return _given(
        python=found.python, platform=f"{found.platform} {found.machine}", packages=len(found.packages)
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _run(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("tracking").get_run(run=ident)
    return _given(experiment=found.experiment, name=found.name, status=found.status, by=found.created_by)


def _verdict(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("loop").get_verdict(verdict=ident)
    return _given(passed=found.passed, champion=found.champion, at=found.at.isoformat())


def _deployment(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("deploy").get_deployment(name=ident)
    return _given(targets=", ".join(f"{t.model}@{t.version} {t.weight:.0%}" for t in found.targets))


def _given(**facts: Any) -> Facts:
    return {k: v for k, v in facts.items() if v not in {None, ""}}


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in list(metrics.items())[:5]}
