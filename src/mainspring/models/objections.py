"""What speaks against making a version champion: a gate or a person that refused it, a package or data that is gone.

Read from the event log and from the references that keep objects, so that this room does not import the rooms that judge models and
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


def find_objections(tx: Reader, base: Foundation, version: ModelVersion) -> list[str]:
    """What speaks against the version, a sentence each; empty if nothing does."""
    sentences = [
        _check_gate(tx, base, version),
        _check_approvals(tx, base, version),
        _check_package(base, version),
        _check_data(tx, base, version.dataset_version, "training data"),
        _check_data(tx, base, version.holdout, "hold-out"),
    ]
    return [sentence for sentence in sentences if sentence is not None]


def audit(tx: Reader, base: Foundation) -> Iterator[str]:
    """Compare versions, alias moves and approvals with the events that decided them; yields a sentence for each that differs."""
    for row in rows.list_models(tx, base):
        model = str(row["name"])
        try:
            versions = rows.list_versions(tx, base, model, before=None, limit=1 << 31)
            moves = [e for e, _ in rows.list_alias_moves(tx, base, model)]
            approvals = [(v, a) for v in versions for a in rows.list_approvals(tx, base, model, v.version)]
        except Corrupt as error:
            yield f"model {model}: {error.message}"
            continue
        yield from _audit_versions(tx, base, versions)
        for move in moves:
            event = _read_event(tx, base, move.event)
            if event.get("alias") != move.alias or event.get("version") != move.version:
                yield f"alias {move.alias} of model {model}: no event of the chain moved it to version {move.version}"
            elif list(event.get("overridden") or []) != move.overridden:
                yield f"alias {move.alias} of model {model}: the event names another override"
        for version, approval in approvals:
            event = _read_event(tx, base, approval.event)
            kind = EventKind.MODEL_APPROVED if approval.approved else EventKind.MODEL_REFUSED
            if (event.get("kind"), event.get("actor")) != (kind, approval.actor):
                yield f"approval of {model}@{version.version} by {approval.actor}: no event of the chain records it"


def _audit_versions(tx: Reader, base: Foundation, versions: list[ModelVersion]) -> Iterator[str]:
    for version in versions:
        name = f"{version.model}@{version.version}"
        events = rows_of(
            tx,
            "project = ? AND subject = ? AND kind = 'model.registered'",
            [base.project, ref("model_version", name)],
            "LIMIT 1",
        )
        if not events:
            yield f"model version {name}: no event of the chain registered it"
        elif event_of(events[0]).data.get("package") != version.package:
            yield f"model version {name}: the event that registered it names another package"


def _read_event(tx: Reader, base: Foundation, ident: str) -> dict[str, Any]:
    """The data of one event with its kind and actor; empty if there is no such event."""
    events = rows_of(tx, "project = ? AND id = ?", [base.project, ident], "")
    if not events:
        return {}
    event = event_of(events[0])
    return {**event.data, "kind": event.kind, "actor": event.actor}


def _check_gate(tx: Reader, base: Foundation, version: ModelVersion) -> str | None:
    """The newest verdict counts: a version may be judged again."""
    verdicts = rows_of(
        tx,
        "project = ? AND subject = ? AND kind IN ('gate.passed', 'gate.stopped')",
        [base.project, ref("model_version", f"{version.model}@{version.version}")],
        "ORDER BY seq DESC LIMIT 1",
    )
    if not verdicts or verdicts[0]["kind"] == EventKind.GATE_PASSED:
        return None
    data = event_of(verdicts[0]).data
    failed = data.get("failed") or []
    why = "; ".join(str(r) for r in failed) if isinstance(failed, list) else str(failed)
    return f"the gate stopped it (verdict {data.get('verdict')}): {why or 'no rule passed'}"[:_MAX_REASON]


def _check_approvals(tx: Reader, base: Foundation, version: ModelVersion) -> str | None:
    """The newest approval or refusal counts: people change their minds."""
    approvals = rows.list_approvals(tx, base, version.model, version.version)
    if not approvals or approvals[-1].approved:
        return None
    return f"{approvals[-1].actor} refused it: {approvals[-1].reason}"[:_MAX_REASON]


def _check_package(base: Foundation, version: ModelVersion) -> str | None:
    try:
        files = base.objects.tree(version.package)
        lost = [name for name, entry in sorted(files.items()) if not base.objects.has(entry.digest)]
    except (NotFound, Corrupt, InvalidInput):
        lost = ["its list of files"]
    return f"its package is gone: {', '.join(lost)}" if lost else None


def _check_data(tx: Reader, base: Foundation, ident: str | None, what: str) -> str | None:
    """A dataset version that was committed here and is gone; of one that was never here nothing can be said."""
    if ident is None or not rows.was_committed(tx, base, ident):
        return None
    kept = rows.list_dataset_objects(tx, base, ident)
    if kept and all(base.objects.has(digest) for digest in kept):
        return None
    return f"its {what} (dataset version {ident[:12]}) was deleted"
