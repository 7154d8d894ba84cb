"""Attempts at steps in the database: begun by one executor, kept alive by heartbeats, ended once.

There are two callers. The runner begins and ends the attempts that it runs itself, in its own transactions, under the lease of
the run. For attempts that run elsewhere it writes an offer; a worker takes it and gets a token (``begin_step``), prolongs the attempt
(``heartbeat_step``) and ends it (``finish_step``). The token is compared with the row in the transaction that commits, so an attempt
that was lost or withdrawn cannot commit anything.

Lock order, as far as a transaction touches them: the row of ``step_offers``, then ``step_executions``, then ``object_refs``. Two
transactions that lock the same rows in different orders block each other on PostgreSQL.
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
    """What is recorded at the end of an attempt beside its result. ``unfit``: why the result is never taken from the cache."""

    pipeline: str
    code: str
    environment: str
    unfit: str | None = None


# --- ending: the one commit ----------------------------------------------------------------------------------------------


def end_attempt(
    d: Decision, project: str, execution: StepExecution, result: StepResult, facts: Facts
) -> None:
    """Commit the result of an attempt: its row, the event, edges and references. The caller has checked that it may.

    Raises :class:`Fenced` if another transaction has ended it since (possible on PostgreSQL only: SQLite has one writer).
    """
    error = result.error
    unfit = facts.unfit if error is None else None
    if not rows.end_execution(d.tx, project, execution.id, _state_after(error), result=result, unfit=unfit):
        raise _fenced(rows.read_execution(d.tx, project, execution.id))
    subject = ref("step", execution.id)
    if error is None:
        rows.record_finished(
            d, project, execution, pipeline=facts.pipeline, code=facts.code, environment=facts.environment, result=result
        )  # fmt: skip
        return
    if result.log is not None:
        d.refer(result.log, subject)
    data = {
        "run": execution.run,
        "step": execution.step,
        "attempt": execution.attempt,
        "kind": error.kind,
        "type": error.type,
        "message": error.message[:500],
    }
    d.event(EventKind.STEP_LOST if error.kind == "lost" else EventKind.STEP_FAILED, subject, data)
    d.edge(ref("run", execution.run), subject, "step")


def _state_after(error: StepError | None) -> StepState:
    if error is None:
        return "finished"
    return {"cancelled": "cancelled", "lost": "lost"}.get(error.kind, "failed")  # type: ignore[return-value]


# --- offers ----------------------------------------------------------------------------------------------------------------


def offer_step(d: Decision, job: StepJob, *, code: str, ttl_s: float, unfit: str | None) -> None:
    """Let workers take a waiting execution, whose heartbeats must come within ``ttl_s`` seconds.

    Objects that only its job refers to are kept until the execution has ended.
    """
    d.tx.execute(
        "INSERT INTO step_offers (project, execution, job, unfit, ttl_us) VALUES (?, ?, ?, ?, ?)",
        job.project, job.execution, to_json(job).decode(), unfit, int(ttl_s * 1e6),
    )  # fmt: skip
    d.refer(code, _job_owner(job.execution))
    if job.files is not None:
        d.refer(job.files, _job_owner(job.execution), tree=True)


def list_waiting(tx: Reader, project: str, *, limit: int) -> list[WaitingStep]:
    """Steps that workers may take, oldest first, at most ``limit``. Steps of a run that was cancelled are left out."""
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


def take_offer(d: Decision, project: str, execution: str, *, worker: str, environment: str) -> StepLease:
    """Give a waiting execution to a worker.

    Raises :class:`Conflict` if another worker has it, it is over, or its run has ended or was cancelled; :class:`NotFound` for an
    unknown id.
    """
    # The offer is locked before the execution, as wherever both are changed (see the lock order above).
    offer = _read_offer(d.tx, project, execution, lock=True)
    run = rows.read_run(d.tx, project, offer.execution.run)
    if run.state != "running" or run.cancel_requested:
        raise Conflict(
            "the run of this step is over or was cancelled", value=run.id, next_step="Take another step."
        )
    token, now = secrets.token_urlsafe(24), rows.wall_us()
    # Compare-and-set on the state: of several workers exactly one gets the step.
    if not d.tx.execute(
        "UPDATE step_executions SET state = 'running', worker = ?, environment = ?, started_us = ? WHERE project = ? AND id = ? AND state = 'waiting'",
        worker, environment, now, project, execution,
    ):  # fmt: skip
        raise Conflict(
            f"this step is not waiting: it is {offer.execution.state}",
            value=offer.execution.worker or execution,
            next_step="Take another step.",
        )
    d.tx.execute(
        "UPDATE step_offers SET token = ?, expires_us = ? WHERE project = ? AND execution = ?",
        token, now + offer.ttl_us, project, execution,
    )  # fmt: skip
    return StepLease(job=offer.job, token=token, ttl_s=offer.ttl_us / 1e6)


def prolong_attempt(tx: Writer, project: str, execution: str, token: str) -> Heartbeat:
    """Prolong an attempt by its ttl. Raises :class:`Fenced` if it has ended or ``token`` is not its token."""
    offer = _read_held_offer(tx, project, execution, token)
    if offer.execution.state not in UNDER_WAY:
        raise _fenced(offer.execution)
    tx.execute(
        "UPDATE step_offers SET expires_us = ? WHERE project = ? AND execution = ?",
        rows.wall_us() + offer.ttl_us, project, execution,
    )  # fmt: skip
    if rows.is_cancelled(tx, project, offer.execution.run):
        return Heartbeat(go_on=False, reason="the run was cancelled")
    return Heartbeat(go_on=True)


def finish_attempt(
    d: Decision, project: str, execution: str, token: str, result: StepResult
) -> StepExecution:
    """End a worker's attempt, once: the same call again, with the token that ended it, returns what was committed.

    Raises :class:`Fenced` if the attempt was lost or ``token`` is not its token. The caller has checked the digests in ``result``.
    """
    offer = _read_held_offer(d.tx, project, execution, token)
    if offer.execution.state == "lost":
        raise _fenced(offer.execution)
    if offer.execution.state in UNDER_WAY:
        end_attempt(d, project, offer.execution, result, _read_facts(d.tx, project, offer))
        d.unrefer(_job_owner(execution))
    return rows.read_execution(d.tx, project, execution)


def settle_attempt(d: Decision, project: str, execution: str) -> StepExecution:
    """The current state of an attempt elsewhere; if its last heartbeat is older than the ttl, this call records it as lost.

    The attempt is still under way if a heartbeat came after the caller's last read.
    """
    offer = _read_offer(d.tx, project, execution, lock=True)
    if offer.execution.state == "running" and offer.expires_us <= rows.wall_us():
        message = f"worker {offer.execution.worker} was not heard of for {offer.ttl_us / 1e6:g} s"
        _end_offer(d, project, offer, StepError(kind="lost", type="", message=message))
    return rows.read_execution(d.tx, project, execution)


def withdraw_offer(d: Decision, project: str, execution: str) -> None:
    """Cancel an offer that no worker has taken, because its run was cancelled."""
    offer = _read_offer(d.tx, project, execution, lock=True)
    if offer.execution.state == "waiting":
        _end_offer(d, project, offer, StepError(kind="cancelled", type="", message="the run was cancelled"))


def select_under_way(tx: Reader, project: str, executions: Iterable[str]) -> set[str]:
    """Those of ``executions`` that wait, or run at a worker whose heartbeat came in time."""
    wanted, now, matches = list(executions), rows.wall_us(), set[str]()
    for start in range(0, len(wanted), 500):  # databases bound the number of parameters of a statement
        part = wanted[start : start + 500]
        selected = tx.all(
            "SELECT e.id AS id FROM step_executions e JOIN step_offers o ON o.project = e.project AND o.execution = e.id "
            f"WHERE e.project = ? AND e.id IN ({', '.join('?' * len(part))}) "
            "AND (e.state = 'waiting' OR (e.state = 'running' AND o.expires_us > ?))",
            project, *part, now,
        )  # fmt: skip
        matches |= {str(r["id"]) for r in selected}
    return matches


# --- rows ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Offer:
    execution: StepExecution
    job: StepJob
    unfit: str | None
    token: str
    ttl_us: int
    expires_us: int


def _read_offer(tx: Reader | Writer, project: str, execution: str, *, lock: bool = False) -> _Offer:
    if lock and isinstance(tx, Writer):
        # An update that changes nothing locks the row: on PostgreSQL any other transaction that would end this attempt waits until
        # this one is over. FOR UPDATE would do the same, but SQLite does not know it.
        tx.execute(
            "UPDATE step_offers SET token = token WHERE project = ? AND execution = ?", project, execution
        )
    row = tx.first("SELECT * FROM step_offers WHERE project = ? AND execution = ?", project, execution)
    if row is None:
        raise NotFound("no step waits or runs under this id", value=execution)
    return _Offer(
        execution=rows.read_execution(tx, project, execution),
        job=from_json(row["job"], StepJob),
        unfit=row["unfit"],
        token=str(row["token"]),
        ttl_us=int(row["ttl_us"]),
        expires_us=int(row["expires_us"]),
    )


def _read_held_offer(tx: Writer, project: str, execution: str, token: str) -> _Offer:
    """Lock and read the offer of an attempt; raises :class:`Fenced` if ``token`` is not its token (compared in constant time)."""
    offer = _read_offer(tx, project, execution, lock=True)
    if not offer.token or not secrets.compare_digest(offer.token.encode(), token.encode("utf-8", "replace")):
        raise _fenced(offer.execution)
    return offer


def _end_offer(d: Decision, project: str, offer: _Offer, error: StepError) -> None:
    end_attempt(d, project, offer.execution, StepResult(error=error), _read_facts(d.tx, project, offer))
    d.unrefer(_job_owner(offer.execution.id))


def _read_facts(tx: Reader, project: str, offer: _Offer) -> Facts:
    """What is recorded at the end of a worker's attempt.

    A result from an environment other than the run's serves this run only, because the cache key names the run's environment.
    """
    ingredients = rows.read_ingredients(tx, project, offer.execution.id)
    actual, expected = offer.execution.environment, ingredients.environment
    unfit = offer.unfit
    if actual and expected and actual != expected:
        unfit = unfit or f"it ran in another environment, {actual[:12]}, at worker {offer.execution.worker}"
    return Facts(
        pipeline=offer.job.pipeline, code=ingredients.code, environment=actual or expected, unfit=unfit
    )


def _fenced(execution: StepExecution) -> Fenced:
    return Fenced(
        f"this attempt is not yours any more: it is {execution.state}",
        value=execution.id,
        next_step="Drop its result; the step is tried again, or its run has stopped.",
    )


def _job_owner(execution: str) -> str:
    """The owner, in the object store's references, of objects that only the job of an execution refers to.

    ``rows.lose_running`` builds the same name in SQL.
    """
    return f"job:{execution}"
