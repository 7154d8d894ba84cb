"""Operations on pipeline runs: list and read them, cancel one, and run a step at a worker (begin, heartbeat, finish)."""

from __future__ import annotations

from collections.abc import Iterator

from mainspring.errors import Conflict, InvalidInput, NotFound, near
from mainspring.lineage import Foundation
from mainspring.operations import MIB, Download, Kind, Role, operation
from mainspring.pipelines import attempts, effects, rows
from mainspring.pipelines.arrivals import check_result
from mainspring.records.base import Id
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.pipelines import (
    Heartbeat,
    PipelineRun,
    PipelineRunPage,
    RunEffect,
    StepExecution,
    StepLease,
    StepResult,
    WaitingStep,
    Why,
)


class Pipelines:
    """Runs of pipelines, the executions of their steps, their logs, and why each ran."""

    room = "pipelines"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    @operation(role=Role.VIEWER)
    def list_runs(
        self, *, pipeline: str | None = None, after: str | None = None, limit: int = 50
    ) -> PipelineRunPage:
        """Runs, newest first; ``after`` is the id of the last one seen, ``limit`` 1 to 500."""
        if not 1 <= limit <= 500:
            raise InvalidInput("limit must be 1 to 500", value=limit)
        where, values = "project = ?", [self._base.project]
        for column, value in (("pipeline = ?", pipeline), ("id < ?", after)):
            if value is not None:
                where += f" AND {column}"
                values.append(value)
        with self._base.store.read() as tx:
            selected = tx.all(
                f"SELECT * FROM pipeline_runs WHERE {where} ORDER BY id DESC LIMIT ?", *values, limit + 1
            )
        items = [rows.run_of(r) for r in selected[:limit]]
        return PipelineRunPage(items=items, next=items[-1].id if len(selected) > limit else None)

    @operation(role=Role.VIEWER)
    def get_run(self, id: str) -> PipelineRun:  # noqa: A002 - the word the interface uses
        """One run; raises :class:`NotFound`."""
        with self._base.store.read() as tx:
            return rows.read_run(tx, self._base.project, id)

    @operation(role=Role.VIEWER)
    def list_steps(self, run: str, *, attempts: bool = False) -> list[StepExecution]:
        """The latest execution of each step in the order of the graph; with ``attempts`` every one, oldest first."""
        with self._base.store.read() as tx:
            graph = rows.read_run(tx, self._base.project, run).graph
            executions = rows.read_executions(tx, self._base.project, run)
        if attempts:
            return executions
        latest = {e.step: e for e in executions}
        order = {s.name: i for i, s in enumerate(graph.steps)}
        return sorted(latest.values(), key=lambda e: order.get(e.step, len(order)))

    @operation(role=Role.VIEWER)
    def explain_step(self, run: str, step: str) -> Why:
        """Why a step of the run ran, or why its earlier result was taken."""
        execution = self._latest_execution(run, step)
        if execution.why is None:
            message = execution.error.message if execution.error else "it has not been decided yet"
            return Why(step=step, hit=None, reason=message)
        return execution.why

    @operation(role=Role.VIEWER)
    def get_effects(self, run: str) -> list[RunEffect]:
        """What the run's steps committed, registered and logged; also what an earlier run did whose results this one took."""
        with self._base.store.read() as tx:
            return effects.list_run_effects(tx, self._base.project, run)

    @operation(role=Role.VIEWER, kind=Kind.DOWNLOAD)
    def download_log(self, run: str, step: str) -> Download:
        """The log of the step's latest attempt (its beginning and end, if it is long); for a cached step that of the execution whose result it took."""
        execution = self._latest_execution(run, step)
        digest = execution.log
        if execution.cached_from is not None:
            with self._base.store.read() as tx:
                digest = tx.scalar(
                    "SELECT log FROM step_executions WHERE project = ? AND id = ?",
                    self._base.project,
                    execution.cached_from,
                )
        chunks: Iterator[bytes] = iter(()) if digest is None else iter(self._base.objects.chunks(digest))
        return Download(chunks=chunks, media_type="text/plain; charset=utf-8", name=f"{step}.log")

    @operation(role=Role.EDITOR, changes=True)
    def cancel_run(self, run: str, *, reason: str = "") -> PipelineRun:
        """Ask the runner of a run to stop it, which takes a few seconds. Raises :class:`Conflict` if the run has ended."""
        with self._base.ledger.decision() as d:
            record = rows.read_run(d.tx, self._base.project, run)
            if record.state != "running":
                raise Conflict(f"the run has ended already: {record.state}", value=run)
            d.tx.execute(
                "UPDATE pipeline_runs SET cancel = 1 WHERE project = ? AND id = ?", self._base.project, run
            )
            d.event(EventKind.PIPELINE_CANCEL_REQUESTED, ref("run", run), {"reason": reason})
            return d.done(rows.read_run(d.tx, self._base.project, run))

    # --- running steps elsewhere ---------------------------------------------------------------------------------------

    @operation(role=Role.EDITOR)
    def list_waiting_steps(self, *, limit: int = 20) -> list[WaitingStep]:
        """Steps that wait for a worker, oldest first; ``limit`` 1 to 500. For workers, hence the role."""
        if not 1 <= limit <= 500:
            raise InvalidInput("limit must be 1 to 500", value=limit)
        with self._base.store.read() as tx:
            return attempts.list_waiting(tx, self._base.project, limit=limit)

    @operation(role=Role.EDITOR, changes=True)
    def begin_step(self, execution: Id, *, worker: str, environment: str = "") -> StepLease:
        """Take a waiting step: its job, described by digests, and the token for what follows.

        ``worker`` names who takes it, ``environment`` is the digest of its installed environment. Raises :class:`Conflict` if
        another has it, or its run is over or was cancelled.
        """
        _check_text(worker, what="worker", least=1)
        _check_text(environment, what="environment", least=0)
        with self._base.ledger.decision() as d:
            lease = attempts.take_offer(
                d, self._base.project, execution, worker=worker, environment=environment
            )
            d.event(EventKind.STEP_BEGUN, ref("step", execution), {"run": lease.job.run, "step": lease.job.step, "worker": worker})  # fmt: skip
            return d.done(lease)

    @operation(role=Role.EDITOR, changes=True, keyed=False)
    def heartbeat_step(self, execution: Id, *, token: str) -> Heartbeat:
        """Report that the step still runs; answers whether to go on. To be called every third of the lease's ``ttl_s``.

        Raises :class:`Fenced` if the attempt is lost: nothing of it can be committed.
        """
        with self._base.store.write() as tx:
            return attempts.prolong_attempt(tx, self._base.project, execution, token)

    @operation(role=Role.EDITOR, changes=True, max_body=16 * MIB, keyed=False)
    def finish_step(self, execution: Id, *, token: str, result: StepResult) -> StepExecution:
        """Commit the result of an attempt, once; the same call again returns what was committed.

        Every digest in ``result`` is of an object that was put into this project before. Raises :class:`NotFound` for one that was
        not, :class:`Fenced` if the attempt is lost. An ``error`` of kind ``lost`` gives the step back.
        """
        check_result(self._base, result)
        with self._base.ledger.decision() as d:
            return d.done(attempts.finish_attempt(d, self._base.project, execution, token, result))

    def _latest_execution(self, run: str, step: str) -> StepExecution:
        with self._base.store.read() as tx:
            graph = rows.read_run(tx, self._base.project, run).graph
            executions = [e for e in rows.read_executions(tx, self._base.project, run) if e.step == step]
        if not executions:
            known = [s.name for s in graph.steps]
            raise NotFound(
                f"run {run} has no execution of a step {step!r}",
                value=step,
                next_step=near(step, known, what="step"),
            )
        return executions[-1]


def _check_text(text: str, *, what: str, least: int) -> None:
    if not least <= len(text) <= 200 or not text.isprintable():
        raise InvalidInput(f"{what}: {least} to 200 printable characters", value=text)
