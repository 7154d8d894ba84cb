"""Events in words, with the tone they carry."""

from __future__ import annotations

from mainspring.records.base import Record
from mainspring.records.lineage import Event

_WORDS: dict[str, tuple[str, str]] = {
    "loop.retrain": ("Retraining asked for", "busy"),
    "loop.job_started": ("Retraining started", "busy"),
    "loop.job_finished": ("Retraining ended", "idle"),
    "loop.job_failed": ("Retraining failed", "bad"),
    "loop.job_requeued": ("Retraining put back in the queue", "warn"),
    "loop.gate_pass": ("The gate let it pass", "good"),
    "loop.gate_stop": ("The gate stopped it", "bad"),
    "loop.start": ("Rollout started", "busy"),
    "loop.advance": ("Rollout went on", "busy"),
    "loop.promote": ("Promoted to champion", "good"),
    "loop.rollback": ("Rolled back", "bad"),
    "loop.abandon": ("Rollout abandoned", "warn"),
    "loop.needs_human": ("Needs a person", "warn"),
    "gate.passed": ("Gate passed", "good"),
    "gate.stopped": ("Gate stopped it", "bad"),
    "alert.opened": ("Alert opened", "warn"),
    "alert.resolved": ("Alert resolved", "good"),
    "model.registered": ("Version registered", "idle"),
    "model.alias_set": ("Alias moved", "idle"),
    "model.alias_removed": ("Alias removed", "idle"),
    "model.tagged": ("Version tagged", "idle"),
    "model.evaluated": ("Version evaluated", "idle"),
    "model.approved": ("Version approved", "good"),
    "model.refused": ("Version refused", "bad"),
    "deployment.routed": ("Traffic rerouted", "idle"),
    "deployment.removed": ("Deployment removed", "warn"),
    "dataset.committed": ("Data committed", "idle"),
    "dataset.refused": ("Data refused", "bad"),
    "dataset.checked": ("Data checked", "idle"),
    "dataset.deleted": ("Data deleted", "warn"),
    "dataset.tagged": ("Data tagged", "idle"),
    "pipeline.started": ("Pipeline started", "busy"),
    "pipeline.finished": ("Pipeline finished", "good"),
    "pipeline.failed": ("Pipeline failed", "bad"),
    "pipeline.cancelled": ("Pipeline cancelled", "warn"),
    "pipeline.interrupted": ("Pipeline interrupted", "warn"),
    "pipeline.resumed": ("Pipeline resumed", "busy"),
    "pipeline.cancel_requested": ("Cancelling asked for", "warn"),
    "step.cached": ("Steps taken from the cache", "idle"),
    "step.finished": ("Step finished", "idle"),
    "step.failed": ("Step failed", "bad"),
    "run.started": ("Run started", "idle"),
    "run.captured": ("Code and environment captured", "idle"),
    "run.finished": ("Run finished", "idle"),
    "run.failed": ("Run failed", "bad"),
    "run.killed": ("Run killed", "bad"),
    "run.resumed": ("Run resumed", "idle"),
    "run.used": ("Input recorded", "idle"),
    "run.artifact_logged": ("Artifact logged", "idle"),
    "run.tagged": ("Run tagged", "idle"),
    "run.deleted": ("Run deleted", "warn"),
    "run.restored": ("Run restored", "idle"),
    "holdout.locked": ("Hold-out locked", "idle"),
    "holdout.used": ("Hold-out used", "idle"),
    "feedback.received": ("Labels received", "idle"),
    "feedback.settled": ("Parked labels joined", "idle"),
    "uploads.expired": ("Unused uploads expired", "idle"),
    "experiment.created": ("Experiment created", "idle"),
    "experiment.renamed": ("Experiment renamed", "idle"),
    "experiment.deleted": ("Experiment deleted", "warn"),
    "experiment.restored": ("Experiment restored", "idle"),
    "event.damaged": ("This row cannot be read", "bad"),
    "lineage.sealed": ("Edges of version 1 sealed", "idle"),
    "lineage.recorded": ("Lineage recorded", "idle"),
}


class Told(Record, frozen=True):
    """An event as a person reads it; ``related`` are references that its data names."""

    event: Event
    words: str
    tone: str
    detail: str
    related: list[str]


def tell(event: Event) -> Told:
    """An event in words."""
    if event.kind == "model.alias_set" and event.data.get("override"):
        return Told(
            event=event,
            words="Alias moved by override",
            tone="warn",
            detail=_detail(event),
            related=_related(event),
        )
    words, tone = _WORDS.get(
        event.kind, (event.kind.replace(".", ": ").replace("_", " ").capitalize(), "idle")
    )
    return Told(event=event, words=words, tone=tone, detail=_detail(event), related=_related(event))


def _detail(event: Event) -> str:
    data = event.data
    if event.kind == "model.alias_set":
        said = f"{data.get('alias')} is version {data.get('version')} now: {data.get('reason', '')}"
        against = data.get("overridden")
        return said + (f" (in spite of: {'; '.join(map(str, against))})" if isinstance(against, list) else "")
    if event.kind.startswith("alert."):
        said = data.get("reason") or data.get("detail") or ""
        return f"{data.get('kind')} of {data.get('subject')} in {data.get('deployment')}: {said}"
    for name in ("reason", "detail", "error", "message", "purpose"):
        if data.get(name):
            return str(data[name])
    match event.kind:
        case "dataset.committed":
            return f"{data.get('dataset')} version {data.get('number')}" + (
                f", {data['rows']:,} rows" if isinstance(data.get("rows"), int) else ""
            )
        case "feedback.received":
            return ", ".join(f"{v} {k}" for k, v in data.items() if v)
        case "step.finished" | "step.failed":
            return f"{data.get('pipeline', '')}: {data.get('step', '')}"
        case "pipeline.started":
            return str(data.get("pipeline", ""))
        case "experiment.created" | "experiment.renamed" | "experiment.deleted" | "experiment.restored":
            return " is now ".join(str(data[k]) for k in ("before", "name") if data.get(k))
        case "run.started":
            return str(data.get("name") or data.get("experiment") or "")
        case "loop.job_finished":
            return f"version {data['version']}" if data.get("version") else ""
    return ""


def _related(event: Event) -> list[str]:
    data = event.data
    found = [f"{kind}:{data[kind]}" for kind in ("run", "verdict") if isinstance(data.get(kind), str)]
    if isinstance(data.get("version"), int) and isinstance(data.get("model"), str):
        found.insert(0, f"model_version:{data['model']}@{data['version']}")
    return [r for r in found if r != event.subject]
