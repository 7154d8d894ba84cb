"""Attempts at steps in the database: begun by one executor, kept alive, ended once.

Two callers share this. The runner begins and ends the attempts that it runs itself, in its own transactions, under the lease of
the run. For attempts that run elsewhere it writes an offer; whoever takes it gets a token (``begin_step``), prolongs it
(``heartbeat_step``) and ends it (``finish_step``). The token is held against the row in the transaction that commits, so an attempt
that was lost or taken back commits nothing any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from mainspring.clock import from_us
from mainspring.errors import Conflict, Fenced, NotFound
from mainspring.lineage import Decision
from mainspring.pipelines import rows
from mainspring.records.base import from_json, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.pipelines import (
    Heartbeat,
    StepError,
    StepExecution,
    StepJob,
    StepLease,
    StepResult,
    StepState,
    WaitingStep,
)
from mainspring.storage.sql import Reader, Writer

UNDER_WAY = frozenset({"waiting", "running"})


@dataclass(frozen=True)
class Facts:
    """What the end of an attempt is recorded with, beside its result. ``unfit``: why the result is never taken again."""

    pipeline: str
    code: str
    environment: str
    unfit: str | None = None


# --- ending: the one commit ----------------------------------------------------------------------------------------------


def end(d: Decision, project: str, execution: StepExecution, result: StepResult, facts: Facts) -> None:
    """Commit what an attempt came to: its row, the event, edges and references. The caller has checked that it may.

    Raises :class:`Fenced` if another transaction has ended it since (on PostgreSQL it may have).
    """
    error = result.error
    unfit = facts.unfit if error is None else None
    if not rows.end_execution(d.tx, project, execution.id, _state_for(error), result=result, unfit=unfit):
        raise _lost(rows.read_execution(d.tx, project, execution.id))
    me = ref("step", execution.id)
    if error is None:
        rows.record_finished(
            d, project, execution, pipeline=facts.pipeline, code=facts.code, environment=facts.environment, result=result
        )  # fmt: skip
        return
    if result.log is not None:
        d.refer(result.log, me)
    data = {
        "run": execution.run,
        "step": execution.step,
        "attempt": execution.attempt,
        "kind": error.kind,
        "type": error.type,
        "message": error.message[:500],
    }
    d.event(EventKind.STEP_LOST if error.kind == "lost" else EventKind.STEP_FAILED, me, data)
    d.edge(ref("run", execution.run), me, "step")


def _state_for(error: StepError | None) -> StepState:
    if error is None:
        return "finished"
    return {"cancelled": "cancelled", "lost": "lost"}.get(error.kind, "failed")  # type: ignore[return-value]


# --- offers ----------------------------------------------------------------------------------------------------------------


def offer(d: Decision, job: StepJob, *, code: str, ttl_s: float, unfit: str | None) -> None:
    """Let workers take an execution that waits. What only its job refers to is kept until it has ended."""
    d.tx.execute(
        "INSERT INTO step_offers (project, execution, job, unfit, ttl_us) VALUES (?, ?, ?, ?, ?)",
        job.project, job.execution, to_json(job).decode(), unfit, int(ttl_s * 1e6),
    )  # fmt: skip
    d.refer(code, _owner(job.execution))
    if job.files is not None:
        d.refer(job.files, _owner(job.execution), tree=True)


def waiting(tx: Reader, project: str, *, limit: int) -> list[WaitingStep]:
    """What workers may take, oldest first. Steps of a run that is to stop are left out."""
    selected = tx.all(
        "SELECT e.id AS id, e.run AS run, e.pipeline AS pipeline, e.step AS step, e.started_us AS since FROM step_executions e "
        "JOIN step_offers o ON o.project = e.project AND o.execution = e.id "
        "JOIN pipeline_runs r ON r.project = e.project AND r.id = e.run "
        "WHERE e.project = ? AND e.state = 'waiting' AND r.state = 'running' AND r.cancel = 0 ORDER BY e.id LIMIT ?",
        project, limit,
    )  # fmt: skip
    return [
        WaitingStep(
            execution=r["id"], run=r["run"], pipeline=r["pipeline"], step=r["step"], since=from_us(r["since"])
        )
        for r in selected
    ]


def take(d: Decision, project: str, execution: str, *, worker: str, environment: str) -> StepLease:
    """Give a waiting execution to a worker. Raises :class:`Conflict` if another has it, it is over, or its run is to stop."""
    # The offer before the execution, as wherever both are changed: in two orders the transactions block each other.
    found = _offered(d.tx, project, execution, lock=True)
    run = rows.read_run(d.tx, project, found.execution.run)
    if run.state != "running" or run.cancel_requested:
        raise Conflict(
            "the run of this step is over or was cancelled", value=run.id, next_step="Take another step."
        )
    token, now = secrets.token_urlsafe(24), rows.wall_us()
    if not d.tx.execute(
        "UPDATE step_executions SET state = 'running', worker = ?, environment = ?, started_us = ? WHERE project = ? AND id = ? AND state = 'waiting'",
        worker, environment, now, project, execution,
    ):  # fmt: skip
        raise Conflict(
            f"this step is not waiting: it is {found.execution.state}",
            value=found.execution.worker or execution,
            next_step="Take another step.",
        )
    d.tx.execute(
        "UPDATE step_offers SET token = ?, expires_us = ? WHERE project = ? AND execution = ?",
        token, now + found.ttl_us, project, execution,
    )  # fmt: skip
    return StepLease(job=found.job, token=token, ttl_s=found.ttl_us / 1e6)


def beat(tx: Writer, project: str, execution: str, token: str) -> Heartbeat:
    """Prolong an attempt. Raises :class:`Fenced` if it is not this token's any more."""
    found = _held(tx, project, execution, token)
    if found.execution.state not in UNDER_WAY:
        raise _lost(found.execution)
    tx.execute(
        "UPDATE step_offers SET expires_us = ? WHERE project = ? AND execution = ?",
        rows.wall_us() + found.ttl_us, project, execution,
    )  # fmt: skip
    if rows.is_cancelled(tx, project, found.execution.run):
        return Heartbeat(go_on=False, reason="the run was cancelled")
    return Heartbeat(go_on=True)


def finish(d: Decision, project: str, execution: str, token: str, result: StepResult) -> StepExecution:
    """End a worker's attempt, once: with the token that ended it the same call again returns what was committed.

    Raises :class:`Fenced` if the attempt was lost or never was this token's. Digests in ``result`` have been checked.
    """
    found = _held(d.tx, project, execution, token)
    if found.execution.state == "lost":
        raise _lost(found.execution)
    if found.execution.state in UNDER_WAY:
        end(d, project, found.execution, result, _facts(d.tx, project, found))
        d.unrefer(_owner(execution))
    return rows.read_execution(d.tx, project, execution)


def settle(d: Decision, project: str, execution: str) -> StepExecution:
    """What became of an attempt elsewhere; one whose worker was not heard of in time is lost with this call.

    Still under way if its worker was heard of since the caller looked.
    """
    found = _offered(d.tx, project, execution, lock=True)
    if found.execution.state == "running" and found.expires_us <= rows.wall_us():
        message = f"worker {found.execution.worker} was not heard of for {found.ttl_us / 1e6:g} s"
        _drop(d, project, found, StepError(kind="lost", type="", message=message))
    return rows.read_execution(d.tx, project, execution)


def withdraw(d: Decision, project: str, execution: str) -> None:
    """Take an offer back that nobody has taken: its run is to stop."""
    found = _offered(d.tx, project, execution, lock=True)
    if found.execution.state == "waiting":
        _drop(d, project, found, StepError(kind="cancelled", type="", message="the run was cancelled"))


def under_way(tx: Reader, project: str, executions: Iterable[str]) -> set[str]:
    """Those of ``executions`` that wait, or run at a worker that was heard of in time."""
    wanted, now, found = list(executions), rows.wall_us(), set[str]()
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        selected = tx.all(
            "SELECT e.id AS id FROM step_executions e JOIN step_offers o ON o.project = e.project AND o.execution = e.id "
            f"WHERE e.project = ? AND e.id IN ({', '.join('?' * len(part))}) "
            "AND (e.state = 'waiting' OR (e.state = 'running' AND o.expires_us > ?))",
            project, *part, now,
        )  # fmt: skip
        found |= {str(r["id"]) for r in selected}
    return found


# --- rows ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Offered:
    execution: StepExecution
    job: StepJob
    unfit: str | None
    token: str
    ttl_us: int
    expires_us: int


def _offered(tx: Reader | Writer, project: str, execution: str, *, lock: bool = False) -> _Offered:
    if lock and isinstance(tx, Writer):
        # On PostgreSQL the row lock keeps whoever else ends this attempt waiting until this transaction is over.
        tx.execute(
            "UPDATE step_offers SET token = token WHERE project = ? AND execution = ?", project, execution
        )
    row = tx.first("SELECT * FROM step_offers WHERE project = ? AND execution = ?", project, execution)
    if row is None:
        raise NotFound("no step waits or runs under this id", value=execution)
    return _Offered(
        execution=rows.read_execution(tx, project, execution),
        job=from_json(row["job"], StepJob),
        unfit=row["unfit"],
        token=str(row["token"]),
        ttl_us=int(row["ttl_us"]),
        expires_us=int(row["expires_us"]),
    )


def _held(tx: Writer, project: str, execution: str, token: str) -> _Offered:
    found = _offered(tx, project, execution, lock=True)
    if not found.token or not secrets.compare_digest(found.token.encode(), token.encode("utf-8", "replace")):
        raise _lost(found.execution)
    return found


def _drop(d: Decision, project: str, found: _Offered, error: StepError) -> None:
    end(d, project, found.execution, StepResult(error=error), _facts(d.tx, project, found))
    d.unrefer(_owner(found.execution.id))


def _facts(tx: Reader, project: str, found: _Offered) -> Facts:
    """What the end of a worker's attempt is recorded with. A result from another environment serves this run only: the cache key
    names the run's."""
    ingredients = rows.read_ingredients(tx, project, found.execution.id)
    theirs, expected = found.execution.environment, ingredients.environment
    unfit = found.unfit
    if theirs and expected and theirs != expected:
        unfit = unfit or f"it ran in another environment, {theirs[:12]}, at worker {found.execution.worker}"
    return Facts(
        pipeline=found.job.pipeline, code=ingredients.code, environment=theirs or expected, unfit=unfit
    )


def _lost(execution: StepExecution) -> Fenced:
    return Fenced(
        f"this attempt is not yours any more: it is {execution.state}",
        value=execution.id,
        next_step="Drop its result; the step is tried again, or its run has stopped.",
    )


def _owner(execution: str) -> str:
    """The owner, in the object store's references, of what only the job of an execution refers to (also in ``state.lose_running``)."""
    return f"job:{execution}"
