"""Driving one run to its end: decide in the database, start what is ready, wait, commit, repeat.

All decisions of one pass of the loop (which attempts finished, which results are taken from the cache, which attempts start) are one
transaction, checked against the fencing token of the run's lease: a runner that lost the lease cannot commit. ``schedule`` knows what
comes next, ``attempts`` writes the end of an attempt to the database, ``launching`` starts attempts and stores their outputs.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from mainspring.errors import Fenced, MainspringError
from mainspring.lineage import Decision, Foundation
from mainspring.pipelines import attempts, rows
from mainspring.pipelines.attempts import Facts
from mainspring.pipelines.executor import Ended, Executor
from mainspring.pipelines.graph import Built
from mainspring.pipelines.job import Result
from mainspring.pipelines.launching import Attempt, Launcher, Outcome, Settings
from mainspring.pipelines.planning import Done, Judgement, Planner
from mainspring.pipelines.schedule import Node, Schedule
from mainspring.records.events import EventKind
from mainspring.records.pipelines import (
    PipelineEvent,
    PipelineRun,
    RunState,
    StepError,
    StepExecution,
)
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.leases import Lease

declare("pipelines.outputs", "pipelines.committed")

OnEvent = Callable[[PipelineEvent], None]
_WATCH_S = 1.0
_POLL_S = 0.25


class Drive:
    """One run under one lease. Used by one thread; a second one only renews the lease."""

    def __init__(
        self,
        base: Foundation,
        run: PipelineRun,
        built: Built,
        planner: Planner,
        lease: Lease,
        *,
        executor: Executor,
        settings: Settings,
        on_event: OnEvent,
        sources: dict[str, Done],
    ) -> None:
        self._base = base
        self._run = run
        self._planner = planner
        self._lease = lease
        self._executor = executor
        self._ttl_s = settings.lease_ttl_s
        self._on_event = on_event
        self._schedule = Schedule(run.id, built.graph.steps, sources=sources, workers=settings.workers)
        self._launcher = Launcher(
            base, run, planner, lease, self._schedule, executor=executor, settings=settings
        )
        self._verified: set[str] = {a.digest for d in sources.values() for a in d.outputs}
        self._running: dict[str, Attempt] = {}
        self._fenced = threading.Event()
        self._stop = threading.Event()
        self._ended: RunState | None = None

    def run_to_end(self) -> RunState:
        """Run until every step is done, failed or skipped; returns the state in which the run ended.

        Raises :class:`Fenced` if the lease is lost on the way. Any other exception ends the run as ``interrupted`` and is raised
        again.
        """
        with self._base.store.read() as tx:
            for step, attempt in rows.read_attempt_numbers(tx, self._base.project, self._run.id).items():
                if step in self._schedule.nodes:
                    self._schedule.nodes[step].attempt = attempt
        renewer = threading.Thread(target=self._renew_lease, name="pipeline-lease", daemon=True)
        renewer.start()
        try:
            with _interrupt_on_sigterm():
                return self._run_loop()
        except Fenced:
            raise
        except BaseException:
            self._executor.close()
            with contextlib.suppress(MainspringError), self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, self._lease)
                rows.lose_running(d.tx, self._base.project, self._run.id)
                rows.end_run(d, self._base.project, self._run.id, "interrupted")
            raise
        finally:
            self._stop.set()
            renewer.join()
            self._executor.close()
            shutil.rmtree(self._launcher.folder, ignore_errors=True)

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _run_loop(self) -> RunState:
        ended: list[tuple[Attempt, Ended | Result]] = []
        watched = time.monotonic()
        while True:
            if self._fenced.is_set():
                self._base.leases.renew(self._lease, ttl_s=self._ttl_s)  # raises Fenced, naming the lease
            starts = self._advance(ended)
            self._report_events()
            if self._ended is not None:
                return self._ended
            ended = []
            for attempt in starts:
                result = self._launcher.launch(attempt)
                if result is not None:
                    ended.append((attempt, result))
                else:
                    self._running[attempt.execution.id] = attempt
            if not ended:
                waited = self._schedule.wait_s(_POLL_S)
                ended = [(self._running.pop(e.execution), e) for e in self._executor.poll(wait_s=waited)]
            if time.monotonic() - watched > _WATCH_S:
                watched = time.monotonic()
                self._check_cancelled()

    def _renew_lease(self) -> None:
        while not self._stop.wait(self._ttl_s / 3):
            try:
                self._base.leases.renew(self._lease, ttl_s=self._ttl_s)
            except Fenced:
                self._fenced.set()
                return
            except Exception:  # noqa: BLE001, S112 - the database may be busy; the token is checked at every commit anyway
                continue

    def _check_cancelled(self) -> None:
        with self._base.store.read() as tx:
            cancelled = rows.is_cancelled(tx, self._base.project, self._run.id)
        if cancelled and not self._schedule.cancelled:
            self._schedule.cancelled = True
            for execution in self._running:
                if not self._executor.is_here:
                    with self._base.ledger.decision() as d:
                        self._base.leases.check(d.tx, self._lease)
                        attempts.withdraw_offer(d, self._base.project, execution)
                self._executor.kill(execution)

    # --- one pass ------------------------------------------------------------------------------------------------------

    def _advance(self, ended: list[tuple[Attempt, Ended | Result]]) -> list[Attempt]:
        """Store the outputs of ``ended``, then decide and commit in one transaction; returns the attempts to start.

        Objects are put before the transaction that refers to them, and ``writing`` stays open until the commit, so that garbage
        collection does not remove them in between.
        """
        if not ended and self._schedule.is_idle():
            return []
        self._planner.generation += bool(ended)
        self._planner.read_fingerprints(self._schedule.list_judgeable(after_an_end=bool(ended)))
        with contextlib.ExitStack() as stack:
            outcomes = []
            if ended:
                writer = stack.enter_context(self._base.objects.writing())
                outcomes = [
                    self._launcher.store_outcome(writer, attempt, ending) for attempt, ending in ended
                ]
                writer.flush()
                failpoint("pipelines.outputs")
            with self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, self._lease)
                for outcome in outcomes:
                    self._commit_outcome(d, outcome)
                starts = self._start_ready(d)
                self._end_if_over(d)
            failpoint("pipelines.committed")
        for attempt, _ in ended:
            shutil.rmtree(attempt.scratch, ignore_errors=True)
        return starts

    def _start_ready(self, d: Decision) -> list[Attempt]:
        starts: list[Attempt] = []
        cached: dict[str, str] = {}
        # In topological order, so one pass follows a chain of hits to its end.
        for node in self._schedule.nodes.values():
            cause = self._schedule.find_failed_upstream(node)
            if cause is not None:
                self._skip_step(d, node, cause)
            if not self._schedule.is_ready(node) or not self._schedule.has_room():
                continue
            judgement = self._planner.judge(
                d.tx,
                node.step,
                self._schedule.done,
                pipeline=self._run.pipeline,
                run=self._run.id,
                verified=self._verified,
            )
            for bad in judgement.bad:
                rows.invalidate_entry(d.tx, self._base.project, bad)
            if judgement.entry is not None:
                self._take_cached(d, node, judgement, judgement.entry)
                cached[node.step.name] = judgement.entry.cached_from or judgement.entry.id
            else:
                starts.append(self._begin_attempt(d, node, judgement))
        if cached:
            d.event(EventKind.STEP_CACHED, f"run:{self._run.id}", {"steps": cached})
        return starts

    def _take_cached(self, d: Decision, node: Node, judgement: Judgement, entry: StepExecution) -> None:
        """Record that the step takes the result of an earlier execution, with references to its outputs."""
        self._schedule.mark_cached(node, Done(entry.shape, entry.outputs, entry.id), judgement.why.reason)
        if entry.run == self._run.id:
            return  # a resumed run has this execution already
        node.attempt += 1
        execution = msgspec.structs.replace(
            rows.new_execution(
                run=self._run.id,
                step=node.step.name,
                state="cached",
                attempt=node.attempt,
                why=judgement.why,
                inputs=judgement.inputs,
            ),
            outputs=entry.outputs,
            shape=entry.shape,
            metrics=entry.metrics,
            cached_from=entry.cached_from or entry.id,
        )
        rows.insert_execution(d.tx, self._base.project, self._run.pipeline, execution, ingredients=None)
        for artifact in entry.outputs:
            d.refer(artifact.digest, f"step:{execution.id}", tree=artifact.kind == "tree")
        rows.record_reuse(d, self._base.project, execution, entry.cached_from or entry.id)

    def _begin_attempt(self, d: Decision, node: Node, judgement: Judgement) -> Attempt:
        """Record an attempt as running (here) or waiting (for a worker); it is started after the commit."""
        is_here = self._launcher.is_here(node)
        self._schedule.mark_running(node, judgement.why.reason, elsewhere=not is_here)
        execution = rows.new_execution(
            run=self._run.id,
            step=node.step.name,
            state="running" if is_here else "waiting",
            attempt=node.attempt,
            why=judgement.why,
            inputs=judgement.inputs,
        )
        rows.insert_execution(
            d.tx, self._base.project, self._run.pipeline, execution, ingredients=judgement.ingredients
        )
        scratch = self._launcher.folder / "steps" / execution.id
        return Attempt(node, execution, judgement, scratch, time.monotonic())

    def _skip_step(self, d: Decision, node: Node, cause: str) -> None:
        execution = msgspec.structs.replace(
            rows.new_execution(
                run=self._run.id, step=node.step.name, state="skipped", attempt=node.attempt + 1, why=None
            ),
            error=StepError(kind="upstream", type="", message=f"step {cause!r} has no result"),
        )
        rows.insert_execution(d.tx, self._base.project, self._run.pipeline, execution, ingredients=None)
        self._schedule.mark_skipped(node, cause)

    def _end_if_over(self, d: Decision) -> None:
        self._ended = self._schedule.end_state()
        if self._ended is None:
            return
        step, error = self._schedule.failed or (None, None)
        rows.end_run(d, self._base.project, self._run.id, self._ended, error=error, step=step)
        self._schedule.add_event("ended", None, self._ended)

    # --- ending --------------------------------------------------------------------------------------------------------

    def _commit_outcome(self, d: Decision, outcome: Outcome) -> None:
        """Commit the end of an attempt here, or read what was committed for one elsewhere."""
        attempt, node = outcome.attempt, outcome.attempt.node
        execution, project, result = attempt.execution, self._base.project, outcome.result
        if result is None:
            current = attempts.settle_attempt(d, project, execution.id)
            if current.state in attempts.UNDER_WAY:
                self._running[execution.id] = attempt
                self._executor.keep_watching(execution.id)
                return
            shape, outputs, error = current.shape, current.outputs, current.error
        else:
            facts = Facts(
                self._run.pipeline, attempt.judgement.ingredients.code, self._run.environment, outcome.unfit
            )
            attempts.end_attempt(d, project, execution, result, facts)
            shape, outputs, error = result.shape, result.outputs, result.error
        seconds = time.monotonic() - attempt.began
        if error is not None:
            self._schedule.record_failure(node, error, seconds)
            return
        self._schedule.mark_finished(node, Done(shape, outputs, execution.id), seconds)
        self._verified.update(a.digest for a in outputs)

    def _report_events(self) -> None:
        """Report progress; called after the commit, so that only committed events are reported."""
        for event in self._schedule.take_events():
            self._on_event(event)


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """While this is entered, SIGTERM ends the run as ``interrupted``, if this is the main thread and no other handler is set."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
