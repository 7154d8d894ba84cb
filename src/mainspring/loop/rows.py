"""The loop's own tables: jobs, rollouts, verdicts, freezes. Rows in, records out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import blake3

from mainspring.clock import from_us, to_us
from mainspring.errors import Corrupt, NotFound
from mainspring.lineage.audit import event_of, rows_of
from mainspring.records.base import from_json, to_json
from mainspring.records.events import EventKind
from mainspring.records.loop import Job, JobState, PersonNeeded, Rollout, RolloutState, Stage, Verdict
from mainspring.storage.sql import Reader, Row, Writer


def newest_job(tx: Reader, project: str, deployment: str) -> tuple[Job, str | None] | None:
    """The newest job of the deployment, and its outcome (None: not decided yet)."""
    row = tx.first(
        "SELECT * FROM loop_jobs WHERE project = ? AND deployment = ? ORDER BY requested_us DESC, id DESC LIMIT 1",
        project,
        deployment,
    )
    return (job_of(row), row["outcome"]) if row else None


def read_job(tx: Reader, project: str, ident: str) -> Job:
    """One job; raises :class:`NotFound`."""
    row = tx.first("SELECT * FROM loop_jobs WHERE project = ? AND id = ?", project, ident)
    if row is None:
        raise NotFound("no such job", value=ident)
    return job_of(row)


def was_decided(tx: Reader, project: str, key: str) -> bool:
    """Whether a decision with this key was recorded."""
    return bool(
        tx.scalar("SELECT count(*) AS n FROM loop_decisions WHERE project = ? AND key = ?", project, key)
    )


def newest_call(tx: Reader, project: str, deployment: str) -> PersonNeeded | None:
    """The newest call for a person; one because of a spent budget ends with the next retrain."""
    row = tx.first(
        "SELECT reason, at_us FROM loop_decisions c WHERE project = ? AND deployment = ? AND action = 'needs_human' AND NOT (substr(key, 1, 7) = 'budget:' "
        "AND EXISTS (SELECT 1 FROM loop_decisions r WHERE r.project = c.project AND r.deployment = c.deployment AND r.action = 'retrain' "
        "AND r.at_us > c.at_us)) ORDER BY at_us DESC LIMIT 1",
        project,
        deployment,
    )
    if row is None:
        return None
    return PersonNeeded(deployment=deployment, reason=row["reason"], at=from_us(row["at_us"]))


def newest_promoted(tx: Reader, project: str, deployment: str) -> str | None:
    """The id of the newest job that was promoted."""
    ident = tx.scalar(
        "SELECT id FROM loop_jobs WHERE project = ? AND deployment = ? AND outcome = 'promoted' ORDER BY requested_us DESC, id DESC LIMIT 1",
        project,
        deployment,
    )
    return None if ident is None else str(ident)


def failures_in_a_row(tx: Reader, project: str, deployment: str) -> int:
    """How many retrains have ended since the last promotion, at most 20."""
    rows = tx.all(
        "SELECT outcome FROM loop_jobs WHERE project = ? AND deployment = ? AND outcome IS NOT NULL ORDER BY requested_us DESC, id DESC LIMIT 20",
        project,
        deployment,
    )
    count = 0
    for row in rows:
        if row["outcome"] == "promoted":
            break
        count += 1
    return count


def running_rollout(tx: Reader, project: str, deployment: str) -> Rollout | None:
    """The rollout that runs now; there is at most one per deployment."""
    row = tx.first(
        "SELECT * FROM rollouts WHERE project = ? AND deployment = ? AND state = ?",
        project,
        deployment,
        RolloutState.RUNNING.value,
    )
    return rollout_of(row) if row else None


def save_verdict(tx: Writer, project: str, verdict: Verdict) -> None:
    """Insert a verdict with a digest of its record, by which a later change of the row shows."""
    record = to_json(verdict)
    tx.execute(
        "INSERT INTO verdicts (project, id, model, version, passed, record, digest, at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        project, verdict.id, verdict.model, verdict.version, int(verdict.passed), record.decode(), _digest(project, record), to_us(verdict.at),
    )  # fmt: skip


def read_verdict(tx: Reader, project: str, ident: str) -> Verdict:
    """A verdict as it was recorded; raises :class:`NotFound`, and :class:`Corrupt` if the row was altered."""
    row = tx.first("SELECT record, digest FROM verdicts WHERE project = ? AND id = ?", project, ident)
    if row is None:
        raise NotFound("no such verdict", value=ident)
    record = str(row["record"]).encode()
    if _digest(project, record) != row["digest"]:
        raise Corrupt(
            "a verdict was altered after it was given",
            value=ident,
            place="table verdicts",
            next_step="Run 'mainspring audit verify'.",
        )
    return from_json(record, Verdict)


def verdict_digest(project: str, verdict: Verdict) -> str:
    """The digest by which the event of a verdict names its content, in hex."""
    return _digest(project, to_json(verdict))


def audit_verdicts(tx: Reader, project: str) -> Iterator[str]:
    """Check verdicts against the events that recorded them: yields a sentence for each that does not match.

    An event of version 1 names a verdict without a digest of its content; the digest in the row is used then.
    """
    events: dict[str, tuple[str, str | None]] = {}
    for row in rows_of(tx, "project = ? AND kind IN ('gate.passed', 'gate.stopped')", [project], ""):
        event = event_of(row)
        events[str(event.data.get("verdict"))] = (event.kind, event.data.get("digest"))
    for row in tx.all(
        "SELECT id, model, version, passed, record, digest FROM verdicts WHERE project = ?", project
    ):
        name = f"verdict {row['id']} of {row['model']}@{row['version']}"
        kind, digest = events.pop(str(row["id"]), ("", None))
        if not kind:
            yield f"{name}: no event of the chain records it"
        elif _digest(project, str(row["record"]).encode()) != (digest or row["digest"]):
            yield f"{name}: its content differs from what its event records"
        elif (kind == EventKind.GATE_PASSED) != bool(row["passed"]):
            yield f"{name}: its event says {kind.partition('.')[2]}"
    for ident in events:
        yield f"verdict {ident}: an event records it, but its row is missing"


def _digest(project: str, record: bytes) -> str:
    return blake3.blake3(project.encode() + b"\0" + record).hexdigest()


def job_of(row: Row) -> Job:
    return Job(
        id=row["id"],
        deployment=row["deployment"],
        model=row["model"],
        state=JobState(row["state"]),
        trigger=row["trigger_kind"],
        reason=row["reason"],
        requested_at=from_us(row["requested_us"]),
        cutoff=from_us(row["cutoff_us"]),
        params=from_json(row["params"]),
        run=row["run"],
        version=row["version"],
        verdict=row["verdict"],
        error=row["error"],
        finished_at=_optional_time(row["finished_us"]),
        attempt=row["attempt"],
    )


def rollout_of(row: Row) -> Rollout:
    return Rollout(
        id=row["id"],
        deployment=row["deployment"],
        model=row["model"],
        version=row["version"],
        champion=row["champion"],
        state=RolloutState(row["state"]),
        stage=row["stage"],
        stages=from_json(row["stages"], list[Stage]),
        started_at=from_us(row["started_us"]),
        stage_started_at=from_us(row["stage_us"]),
        reason=row["reason"],
        ended_at=_optional_time(row["ended_us"]),
    )


def _optional_time(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)
