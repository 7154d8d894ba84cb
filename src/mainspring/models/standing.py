"""What speaks against a version becoming champion: a gate or a person that refused it, bytes that are gone.

Read from the event log and the references that keep bytes: this room needs no knowledge of the rooms that decide and that
hold data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mainspring.errors import Corrupt, InvalidInput, NotFound
from mainspring.lineage import Foundation
from mainspring.lineage.audit import event_of, rows_of
from mainspring.models import rows
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.models import ModelVersion
from mainspring.storage.sql import Reader

_MAX_REASON = 300


def objections(tx: Reader, base: Foundation, version: ModelVersion) -> list[str]:
    """Sentences, empty if nothing speaks against it."""
    found = [
        _gate(tx, base, version),
        _person(tx, base, version),
        _package(base, version),
        _data(tx, base, version.dataset_version, "training data"),
        _data(tx, base, version.holdout, "hold-out"),
    ]
    return [sentence for sentence in found if sentence is not None]


def audit(tx: Reader, base: Foundation) -> Iterator[str]:
    """Versions, moved aliases and approvals held against the events that decided them: a sentence for each that does not fit."""
    for row in tx.all("SELECT name FROM models WHERE project = ? ORDER BY name", base.project):
        model = str(row["name"])
        try:
            versions = rows.versions(tx, base, model, before=None, limit=1 << 31)
            moves = [e for e, _ in rows.history(tx, base, model)]
            said = [(v, a) for v in versions for a in rows.approvals(tx, base, model, v.version)]
        except Corrupt as error:
            yield f"model {model}: {error.message}"
            continue
        yield from _audit_versions(tx, base, versions)
        for move in moves:
            told = _event(tx, base, move.event)
            if told.get("alias") != move.alias or told.get("version") != move.version:
                yield f"alias {move.alias} of model {model}: no event of the chain moved it to version {move.version}"
            elif list(told.get("overridden") or []) != move.overridden:
                yield f"alias {move.alias} of model {model}: the event names another override"
        for version, approval in said:
            told = _event(tx, base, approval.event)
            kind = EventKind.MODEL_APPROVED if approval.approved else EventKind.MODEL_REFUSED
            if (told.get("kind"), told.get("actor")) != (kind, approval.actor):
                yield f"approval of {model}@{version.version} by {approval.actor}: no event of the chain records it"


def _audit_versions(tx: Reader, base: Foundation, versions: list[ModelVersion]) -> Iterator[str]:
    for version in versions:
        name = f"{version.model}@{version.version}"
        found = rows_of(
            tx,
            "project = ? AND subject = ? AND kind = 'model.registered'",
            [base.project, ref("model_version", name)],
            "LIMIT 1",
        )
        if not found:
            yield f"model version {name}: no event of the chain registered it"
        elif event_of(found[0]).data.get("package") != version.package:
            yield f"model version {name}: the event that registered it names another package"


def _event(tx: Reader, base: Foundation, ident: str) -> dict[str, Any]:
    found = rows_of(tx, "project = ? AND id = ?", [base.project, ident], "")
    if not found:
        return {}
    event = event_of(found[0])
    return {**event.data, "kind": event.kind, "actor": event.actor}


def _gate(tx: Reader, base: Foundation, version: ModelVersion) -> str | None:
    """The newest verdict counts: a version may be judged again."""
    found = rows_of(
        tx,
        "project = ? AND subject = ? AND kind IN ('gate.passed', 'gate.stopped')",
        [base.project, ref("model_version", f"{version.model}@{version.version}")],
        "ORDER BY seq DESC LIMIT 1",
    )
    if not found or found[0]["kind"] == EventKind.GATE_PASSED:
        return None
    data = event_of(found[0]).data
    failed = data.get("failed") or []
    why = "; ".join(str(r) for r in failed) if isinstance(failed, list) else str(failed)
    return f"the gate stopped it (verdict {data.get('verdict')}): {why or 'no rule passed'}"[:_MAX_REASON]


def _person(tx: Reader, base: Foundation, version: ModelVersion) -> str | None:
    said = rows.approvals(tx, base, version.model, version.version)
    if not said or said[-1].approved:
        return None
    return f"{said[-1].actor} refused it: {said[-1].reason}"[:_MAX_REASON]


def _package(base: Foundation, version: ModelVersion) -> str | None:
    try:
        files = base.objects.tree(version.package)
        lost = [name for name, entry in sorted(files.items()) if not base.objects.has(entry.digest)]
    except (NotFound, Corrupt, InvalidInput):
        lost = ["its list of files"]
    return f"its package is gone: {', '.join(lost)}" if lost else None


def _data(tx: Reader, base: Foundation, ident: str | None, what: str) -> str | None:
    """A dataset version that was here and is no more; of one that was never committed here nothing is known."""
    if ident is None:
        return None
    here = ref("dataset_version", ident)
    known = tx.first(
        "SELECT 1 AS one FROM events WHERE project = ? AND subject = ? AND kind = 'dataset.committed' LIMIT 1",
        base.project,
        here,
    )
    if known is None:
        return None
    # Owners of a version's objects are dataset_version:<id>@<dataset>; '@' is followed by 'A' in ASCII.
    kept = tx.all(
        "SELECT DISTINCT digest FROM object_refs WHERE project = ? AND owner >= ? AND owner < ?",
        base.project,
        f"{here}@",
        f"{here}A",
    )
    if kept and all(base.objects.has(str(r["digest"])) for r in kept):
        return None
    return f"its {what} (dataset version {ident[:12]}) was deleted"
