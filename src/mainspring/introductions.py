"""What each room tells the lineage graph about its things: short facts, and edges that are known by rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mainspring.errors import MainspringError

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
    told("dataset_version", facts=_safe(lambda i: _dataset_version(workspace, i)))
    told("run", facts=_safe(lambda i: _run(workspace, i)))
    told("verdict", facts=_safe(lambda i: _verdict(workspace, i)))
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
    found = workspace.room("models").version(model=model, selector=number)
    return _given(
        model=found.model,
        version=found.version,
        created=found.created_at.isoformat(),
        package=found.package,
        format=found.format,
        **_rounded(found.metrics),
    )


def _dataset_version(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("data").by_id(id=ident)
    return _given(
        dataset=found.dataset,
        number=found.number,
        rows=found.rows,
        bytes=found.bytes,
        message=found.message,
        created=found.created_at.isoformat(),
    )


def _run(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("tracking").run(run=ident)
    return _given(experiment=found.experiment, name=found.name, status=found.status, by=found.created_by)


def _verdict(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("loop").verdict(verdict=ident)
    return _given(passed=found.passed, champion=found.champion, at=found.at.isoformat())


def _deployment(workspace: Workspace, ident: str) -> Facts:
    found = workspace.room("deploy").deployment(name=ident)
    return _given(targets=", ".join(f"{t.model}@{t.version} {t.weight:.0%}" for t in found.targets))


def _given(**facts: Any) -> Facts:
    return {k: v for k, v in facts.items() if v not in {None, ""}}


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in list(metrics.items())[:5]}
