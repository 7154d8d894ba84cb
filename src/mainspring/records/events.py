"""Every kind of event, declared once: its name, its words, its tone and how its data is shown in one line.

The ledger records only these kinds (``Decision.event``); pages, command line and consumers read this table. A stored event may come
from a newer program: therefore ``Event.kind`` is a plain string, and :func:`describe` handles every string.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any, Literal, NamedTuple, Self

Tone = Literal["good", "warn", "bad", "idle", "busy"]
Data = Mapping[str, Any]
Detail = Callable[[Data], str]


def _first_of(*templates: str) -> Detail:
    """A detail function: it fills the first template of which no field is missing or empty; the items of a list are joined."""
    fields = [[name for _, name, _, _ in Formatter().parse(t) if name] for t in templates]

    def detail(data: Data) -> str:
        for template, names in zip(templates, fields, strict=True):
            if all(data.get(n) not in (None, "", []) for n in names):
                try:
                    return template.format_map({n: _join_items(data[n]) for n in names})
                # Data of another program: the format in the template may not fit the value.
                except (TypeError, ValueError):
                    continue
        return ""

    return detail


def _join_items(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list) else value


def _counts_detail(data: Data) -> str:
    return ", ".join(f"{count} {name}" for name, count in data.items() if count and name != "edges")


_USUAL = ("{reason}", "{detail}", "{error}", "{message}", "{purpose}")
_usual_detail = _first_of(*_USUAL)


def _usual_or(*templates: str) -> Detail:
    return _first_of(*_USUAL, *templates)


_alert_detail = _first_of(
    "{kind} of {subject} in {deployment}: {reason}",
    "{kind} of {subject} in {deployment}: {detail}",
    "{kind} of {subject} in {deployment}",
)
_alias_detail = _first_of(
    "{alias} is version {version} now: {reason} (in spite of: {overridden})",
    "{alias} is version {version} now: {reason}",
    "{alias} is version {version} now",
)
_step_detail = _usual_or("{pipeline}: {step}", "{step}")


class EventKind(enum.StrEnum):
    """A kind of event: ``thing.verb_in_past``, its words, its tone, and how to show its data (default: the recorded reason).

    The order of the things is the order in which filters offer them.
    """

    words: str
    tone: Tone
    detail: Detail

    def __new__(cls, name: str, words: str = "", tone: Tone = "idle", detail: Detail = _usual_detail) -> Self:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.words, kind.tone, kind.detail = words, tone, detail
        return kind

    LOOP_RETRAIN = "loop.retrain", "Retraining requested", "busy"
    LOOP_JOB_STARTED = "loop.job_started", "Retraining started", "busy"
    LOOP_JOB_FINISHED = "loop.job_finished", "Retraining ended", "idle", _usual_or("version {version}")
    LOOP_JOB_FAILED = "loop.job_failed", "Retraining failed", "bad"
    LOOP_JOB_REQUEUED = "loop.job_requeued", "Retraining put back in the queue", "warn"
    LOOP_GATE_PASS = "loop.gate_pass", "The gate let it pass", "good"
    LOOP_GATE_STOP = "loop.gate_stop", "The gate stopped it", "bad"
    LOOP_START = "loop.start", "Rollout started", "busy"
    LOOP_ADVANCE = "loop.advance", "Rollout went on", "busy"
    LOOP_PROMOTE = "loop.promote", "Promoted to champion", "good"
    LOOP_ROLLBACK = "loop.rollback", "Rolled back", "bad"
    LOOP_ABANDON = "loop.abandon", "Rollout abandoned", "warn"
    LOOP_NEEDS_HUMAN = "loop.needs_human", "Needs a person", "warn"
    GATE_PASSED = "gate.passed", "Gate passed", "good"
    GATE_STOPPED = "gate.stopped", "Gate stopped it", "bad"
    ALERT_OPENED = "alert.opened", "Alert opened", "warn", _alert_detail
    ALERT_RESOLVED = "alert.resolved", "Alert resolved", "good", _alert_detail
    MODEL_REGISTERED = "model.registered", "Version registered", "idle"
    MODEL_ALIAS_SET = "model.alias_set", "Alias moved", "idle", _alias_detail
    MODEL_ALIAS_REMOVED = "model.alias_removed", "Alias removed", "idle"
    MODEL_TAGGED = "model.tagged", "Version tagged", "idle"
    MODEL_EVALUATED = "model.evaluated", "Version evaluated", "idle"
    MODEL_APPROVED = "model.approved", "Version approved", "good"
    MODEL_REFUSED = "model.refused", "Version refused", "bad"
    DEPLOYMENT_ROUTED = "deployment.routed", "Traffic rerouted", "idle"
    DEPLOYMENT_REMOVED = "deployment.removed", "Deployment removed", "warn"
    DATASET_COMMITTED = (
        "dataset.committed", "Data committed", "idle",
        _usual_or("{dataset} version {number}, {rows:,} rows", "{dataset} version {number}"),
    )  # fmt: skip
    DATASET_REFUSED = "dataset.refused", "Data refused", "bad"
    DATASET_CHECKED = "dataset.checked", "Data checked", "idle"
    DATASET_DELETED = "dataset.deleted", "Data deleted", "warn"
    DATASET_TAGGED = "dataset.tagged", "Data tagged", "idle"
    PIPELINE_STARTED = "pipeline.started", "Pipeline started", "busy", _usual_or("{pipeline}")
    PIPELINE_FINISHED = "pipeline.finished", "Pipeline finished", "good"
    PIPELINE_FAILED = "pipeline.failed", "Pipeline failed", "bad"
    PIPELINE_CANCELLED = "pipeline.cancelled", "Pipeline cancelled", "warn"
    PIPELINE_INTERRUPTED = "pipeline.interrupted", "Pipeline interrupted", "warn"
    PIPELINE_RESUMED = "pipeline.resumed", "Pipeline resumed", "busy"
    PIPELINE_CANCEL_REQUESTED = "pipeline.cancel_requested", "Cancellation requested", "warn"
    RUN_STARTED = "run.started", "Run started", "idle", _usual_or("{name}", "{experiment}")
    RUN_CAPTURED = "run.captured", "Code and environment captured", "idle"
    RUN_FINISHED = "run.finished", "Run finished", "idle"
    RUN_FAILED = "run.failed", "Run failed", "bad"
    RUN_KILLED = "run.killed", "Run killed", "bad"
    RUN_RESUMED = "run.resumed", "Run resumed", "idle"
    RUN_USED = "run.used", "Input recorded", "idle"
    RUN_ARTIFACT_LOGGED = "run.artifact_logged", "Artifact logged", "idle"
    RUN_TAGGED = "run.tagged", "Run tagged", "idle"
    RUN_DELETED = "run.deleted", "Run deleted", "warn"
    RUN_RESTORED = "run.restored", "Run restored", "idle"
    STEP_CACHED = "step.cached", "Steps taken from the cache", "idle"
    STEP_BEGUN = "step.begun", "Step begun by a worker", "idle", _step_detail
    STEP_LOST = "step.lost", "Step lost by its worker", "warn", _step_detail
    STEP_FINISHED = "step.finished", "Step finished", "idle", _step_detail
    STEP_FAILED = "step.failed", "Step failed", "bad", _step_detail
    FEEDBACK_RECEIVED = "feedback.received", "Labels received", "idle", _counts_detail
    FEEDBACK_SETTLED = "feedback.settled", "Parked labels joined", "idle", _counts_detail
    HOLDOUT_LOCKED = "holdout.locked", "Hold-out locked", "idle"
    HOLDOUT_USED = "holdout.used", "Hold-out used", "idle"
    PROJECT_CREATED = "project.created", "Project created", "idle"
    EXPERIMENT_CREATED = "experiment.created", "Experiment created", "idle", _usual_or("{name}")
    EXPERIMENT_RENAMED = (
        "experiment.renamed",
        "Experiment renamed",
        "idle",
        _usual_or("{before} is {name} now"),
    )
    EXPERIMENT_DELETED = "experiment.deleted", "Experiment deleted", "warn", _usual_or("{name}")
    EXPERIMENT_RESTORED = "experiment.restored", "Experiment restored", "idle", _usual_or("{name}")
    UPLOADS_EXPIRED = "uploads.expired", "Unused uploads expired", "idle"
    LINEAGE_SEALED = "lineage.sealed", "Edges of version 1 sealed", "idle"
    LINEAGE_RECORDED = "lineage.recorded", "Lineage recorded", "idle"
    CONSUMER_REDELIVERED = (
        "consumer.redelivered",
        "Another delivery requested",
        "idle",
        _first_of("{count} set aside"),
    )
    CONSUMER_REMOVED = "consumer.removed", "Consumer of events removed", "warn"
    EVENT_DAMAGED = "event.damaged", "This row cannot be read", "bad"
    """Never recorded: reading returns it for a row that cannot be decoded (``lineage/audit.py``)."""


class Description(NamedTuple):
    """An event in words; ``detail`` may be empty."""

    words: str
    tone: Tone
    detail: str


def describe(kind: str, data: Data) -> Description:
    """The words, tone and detail of an event, whatever program recorded it."""
    try:
        known = EventKind(kind)
    except ValueError:
        return Description(
            kind.replace(".", ": ").replace("_", " ").capitalize(), "idle", _usual_detail(data)
        )
    if known is EventKind.MODEL_ALIAS_SET and data.get("override"):
        return Description("Alias moved by override", "warn", known.detail(data))
    return Description(known.words, known.tone, known.detail(data))


THINGS = tuple(
    dict.fromkeys(f"{kind.partition('.')[0]}." for kind in EventKind if kind != EventKind.EVENT_DAMAGED)
)
"""The things that events are about, as prefixes of kinds, for filters."""
