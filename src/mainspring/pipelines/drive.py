"""Driving one run to its end: advance in the database, start what is ready, wait, commit, again.

Everything a moment decides (what finished, what can be taken from the cache, what starts) is one transaction, checked
against the lease's fencing token: a runner that lost its run commits nothing any more.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mainspring.errors import Corrupt, Fenced, MainspringError, NotFound
from mainspring.lineage import Decision, Foundation
from mainspring.pipelines import state, warm, worker
from mainspring.pipelines.executor import Ended, Executor
from mainspring.pipelines.graph import Built, upstream
from mainspring.pipelines.job import Job, Located, Output, Result, Source, read_result
from mainspring.pipelines.logs import CappedLog
from mainspring.pipelines.outcomes import LogText, classify, folder_of, log_file, needed
from mainspring.pipelines.planning import Done, Judgement, Planner, put_path
from mainspring.records.events import EventKind
from mainspring.records.pipelines import (
    Artifact,
    GraphStep,
    PipelineEvent,
    PipelineRun,
    RunState,
    StepError,
    StepExecution,
    StepState,
)
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.leases import Lease
from mainspring.storage.objects import ObjectWriter

declare("pipelines.started", "pipelines.spawned", "pipelines.outputs", "pipelines.committed")

OnEvent = Callable[[PipelineEvent], None]
_RETRIED = frozenset({"exception", "signal", "timeout", "exit"})
_MAX_BACKOFF_S = 60.0
_WATCH_S = 1.0

Phase = Literal["waiting", "running", "done", "failed", "skipped"]


@dataclass
class _Node:
    step: GraphStep
    upstream: list[str]
    phase: Phase = "waiting"
    attempt: int = 0
    failures: int = 0
    not_before: float = 0.0


@dataclass
class _Attempt:
    """A running attempt, or one that just ended."""

    node: _Node
    execution: StepExecution
    judgement: Judgement
    scratch: Path
    log: CappedLog
    began: float


@dataclass
class _Outcome:
    attempt: _Attempt
    result: Result
    error: StepError | None
    outputs: list[Artifact]
    log: str | None
    unfit: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a runner passes on to each run. ``opener`` and ``workspace`` let a step open the workspace in its process."""

    workers: int
    lease_ttl_s: float
    opener: str | None
    workspace: dict[str, object]


class Drive:
    """One run under one lease. ``executor`` is made when the first step needs a process."""

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
        self._built = built
        self._planner = planner
        self._lease = lease
        self._executor = executor
        self._settings = settings
        self._on_event = on_event
        self._folder = folder_of(base.home, run.id)
        self._done: dict[str, Done] = dict(sources)
        self._verified: set[str] = {a.digest for d in sources.values() for a in d.outputs}
        self._nodes = {s.name: _Node(s, upstream(s)) for s in built.graph.steps}
        self._running: dict[str, _Attempt] = {}
        self._events: list[PipelineEvent] = []
        self._cancelled = False
        self._failed: tuple[str, StepError] | None = None
        self._fenced = threading.Event()
        self._stop = threading.Event()
        self._ended: RunState | None = None

    def go(self) -> RunState:
        """Run until every step is done, failed or skipped. Raises :class:`Fenced` if the lease is lost on the way."""
        with self._base.store.read() as tx:
            for step, attempt in state.attempts_of(tx, self._base.project, self._run.id).items():
                if step in self._nodes:
                    self._nodes[step].attempt = attempt
        renewer = threading.Thread(target=self._renew, name="pipeline-lease", daemon=True)
        renewer.start()
        try:
            with _terminating():
                return self._loop()
        except Fenced:
            raise
        except BaseException:
            self._executor.close()
            with contextlib.suppress(MainspringError), self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, self._lease)
                state.lose_running(d.tx, self._base.project, self._run.id)
                state.end_run(d, self._base.project, self._run.id, "interrupted")
            raise
        finally:
            self._stop.set()
            renewer.join()
            self._executor.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- the loop ------------------------------------------------------------------------------------------------------

    def _loop(self) -> RunState:
        ended: list[tuple[_Attempt, Ended | Result]] = []
        watched = time.monotonic()
        while True:
            if self._fenced.is_set():
                self._base.leases.renew(
                    self._lease, ttl_s=self._settings.lease_ttl_s
                )  # raises Fenced, naming the lease
            starts = self._advance(ended)
            self._tell()
            if self._ended is not None:
                return self._ended
            ended = []
            for attempt in starts:
                ended += self._launch(attempt)
            if not ended:
                ended = [
                    (self._running.pop(e.execution), e) for e in self._executor.poll(wait_s=self._wait_s())
                ]
            if time.monotonic() - watched > _WATCH_S:
                watched = time.monotonic()
                self._watch_cancel()

    def _wait_s(self) -> float:
        waits = [
            n.not_before - time.monotonic()
            for n in self._nodes.values()
            if n.phase == "waiting" and n.not_before
        ]
        return max(0.0, min([0.25, *waits]))

    def _renew(self) -> None:
        while not self._stop.wait(self._settings.lease_ttl_s / 3):
            try:
                self._base.leases.renew(self._lease, ttl_s=self._settings.lease_ttl_s)
            except Fenced:
                self._fenced.set()
                return
            except Exception:  # noqa: BLE001, S112 - a busy database: the token is checked at every commit anyway
                continue

    def _watch_cancel(self) -> None:
        with self._base.store.read() as tx:
            cancelled = state.is_cancelled(tx, self._base.project, self._run.id)
        if cancelled and not self._cancelled:
            self._cancelled = True
            for execution in self._running:
                self._executor.kill(execution)

    # --- one moment ----------------------------------------------------------------------------------------------------

    def _advance(self, ended: list[tuple[_Attempt, Ended | Result]]) -> list[_Attempt]:
        if not ended and self._idle():
            return []
        self._planner.moment += bool(ended)
        self._planner.look(
            n.step for n in self._nodes.values() if (self._is_ready(n) if ended else n.phase == "waiting")
        )
        with contextlib.ExitStack() as stack:
            outcomes = []
            if ended:
                writer = stack.enter_context(self._base.objects.writing())
                outcomes = [self._store(writer, attempt, how) for attempt, how in ended]
                writer.flush()
                failpoint("pipelines.outputs")
            with self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, self._lease)
                for outcome in outcomes:
                    self._commit(d, outcome)
                starts = self._schedule(d)
                self._maybe_end(d)
            failpoint("pipelines.committed")
        for attempt, _ in ended:
            shutil.rmtree(attempt.scratch, ignore_errors=True)
        return starts

    def _idle(self) -> bool:
        """Nothing to decide: all workers busy, or what waits must wait longer."""
        if self._cancelled and not self._running:
            return False
        if len(self._running) >= self._settings.workers:
            return True
        return bool(self._running or self._ready_later()) and not any(
            self._is_ready(n) for n in self._nodes.values()
        )

    def _is_ready(self, node: _Node) -> bool:
        return (
            node.phase == "waiting"
            and not self._cancelled
            and node.not_before <= time.monotonic()
            and all(self._nodes[u].phase == "done" for u in node.upstream)
        )

    def _ready_later(self) -> bool:
        return any(n.phase == "waiting" and n.not_before > time.monotonic() for n in self._nodes.values())

    def _schedule(self, d: Decision) -> list[_Attempt]:
        starts: list[_Attempt] = []
        cached: dict[str, str] = {}
        for (
            node
        ) in self._nodes.values():  # in topological order, so one pass follows a chain of hits to its end
            if (
                any(self._nodes[u].phase in {"failed", "skipped"} for u in node.upstream)
                and node.phase == "waiting"
            ):
                self._skip(d, node)
            if not self._is_ready(node) or len(self._running) + len(starts) >= self._settings.workers:
                continue
            judgement = self._planner.judge(
                d.tx,
                node.step,
                self._done,
                pipeline=self._run.pipeline,
                run=self._run.id,
                verified=self._verified,
            )
            for bad in judgement.bad:
                state.distrust(d.tx, self._base.project, bad)
            if judgement.entry is not None:
                self._take(d, node, judgement, judgement.entry)
                cached[node.step.name] = judgement.entry.cached_from or judgement.entry.id
            else:
                starts.append(self._begin(d, node, judgement))
        if cached:
            d.event(EventKind.STEP_CACHED, f"run:{self._run.id}", {"steps": cached})
        return starts

    def _take(self, d: Decision, node: _Node, judgement: Judgement, entry: StepExecution) -> None:
        node.phase = "done"
        self._done[node.step.name] = Done(entry.shape, entry.outputs, entry.id)
        self._note("cached", node, judgement.why.reason)
        if entry.run == self._run.id:
            return  # resumed: it stands in this run already
        node.attempt += 1
        execution = _with(
            state.new_execution(
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
        state.insert_execution(d.tx, self._base.project, self._run.pipeline, execution, ingredients=None)
        for artifact in entry.outputs:
            d.refer(artifact.digest, f"step:{execution.id}", tree=artifact.kind == "tree")
        state.record_reuse(d, self._base.project, execution, entry.cached_from or entry.id)

    def _begin(self, d: Decision, node: _Node, judgement: Judgement) -> _Attempt:
        node.attempt += 1
        node.phase = "running"
        execution = state.new_execution(
            run=self._run.id,
            step=node.step.name,
            state="running",
            attempt=node.attempt,
            why=judgement.why,
            inputs=judgement.inputs,
        )
        state.insert_execution(
            d.tx, self._base.project, self._run.pipeline, execution, ingredients=judgement.ingredients
        )
        self._note("running", node, judgement.why.reason)
        log = CappedLog(log_file(self._base.home, self._run.id, execution.id))
        return _Attempt(
            node, execution, judgement, self._folder / "steps" / execution.id, log, time.monotonic()
        )

    def _skip(self, d: Decision, node: _Node) -> None:
        node.phase = "skipped"
        cause = next(u for u in node.upstream if self._nodes[u].phase in {"failed", "skipped"})
        execution = _with(
            state.new_execution(
                run=self._run.id, step=node.step.name, state="skipped", attempt=node.attempt + 1, why=None
            ),
            error=StepError(kind="upstream", type="", message=f"step {cause!r} has no result"),
        )
        state.insert_execution(d.tx, self._base.project, self._run.pipeline, execution, ingredients=None)
        self._note("skipped", node, f"{cause} has no result")

    def _maybe_end(self, d: Decision) -> None:
        phases = {n.phase for n in self._nodes.values()}
        if "running" in phases or ("waiting" in phases and not self._cancelled):
            return
        failed_step, error = self._failed or (None, None)
        self._ended = (
            "cancelled"
            if (self._cancelled and "waiting" in phases) or (error is not None and error.kind == "cancelled")
            else "failed"
            if error
            else "finished"
        )
        state.end_run(d, self._base.project, self._run.id, self._ended, error=error, step=failed_step)
        self._events.append(PipelineEvent(kind="ended", run=self._run.id, detail=self._ended))

    # --- launching -----------------------------------------------------------------------------------------------------

    def _launch(self, attempt: _Attempt) -> list[tuple[_Attempt, Ended | Result]]:
        """Start an attempt; an inline one, or one whose inputs cannot be read, is over at once."""
        failpoint("pipelines.started")
        try:
            attempt.scratch.mkdir(parents=True, mode=0o700)
            job = self._job(attempt)
        except (Corrupt, NotFound) as error:
            attempt.log.close()
            self._distrust_inputs(attempt)
            text = f"an input cannot be read any more: {error}; the step that made it will run again in the next run"
            return [(attempt, Result(error=StepError(kind="input", type=type(error).__name__, message=text)))]
        if attempt.node.step.isolation == "inline":
            return [(attempt, self._inline(attempt, job))]
        self._running[attempt.execution.id] = attempt
        self._executor.start(job, log=attempt.log, timeout_s=attempt.node.step.timeout_s)
        failpoint("pipelines.spawned")
        return []

    def _inline(self, attempt: _Attempt, job: Job) -> Result:
        text = LogText(attempt.log)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            result = worker.execute(job)
        attempt.log.close()
        return result

    def _distrust_inputs(self, attempt: _Attempt) -> None:
        with self._base.ledger.decision() as d:
            self._base.leases.check(d.tx, self._lease)
            for name in attempt.node.upstream:
                done = self._done[name]
                if done.execution is not None and any(not self._readable(a) for a in done.outputs):
                    state.distrust(d.tx, self._base.project, done.execution)

    def _readable(self, artifact: Artifact) -> bool:
        try:
            for _ in self._base.objects.chunks(artifact.digest):
                pass
        except (Corrupt, NotFound):
            return False
        return True

    def _job(self, attempt: _Attempt) -> Job:
        step, run = attempt.node.step, self._run
        sources = {k: self._done[k] for k in needed(step)}
        return Job(
            project=self._base.project,
            run=run.id,
            pipeline=run.pipeline,
            step=step.name,
            execution=attempt.execution.id,
            attempt=attempt.node.attempt,
            function=step.function,
            root=run.root,
            scratch=str(attempt.scratch),
            arguments=step.arguments,
            sources={k: self._located(k, done, attempt) for k, done in sources.items()},
            params=dict(run.params),
            at=(run.at or run.started).isoformat(),
            memory_bytes=step.memory_bytes,
            outputs=step.outputs,
            opener=self._settings.opener,
            workspace=dict(self._settings.workspace),
        )

    def _located(self, key: str, done: Done, attempt: _Attempt) -> Source:
        producer = self._nodes[key].step.function if key in self._nodes else None
        outputs = [Located(artifact=a, path=str(self._materialise(a, attempt))) for a in done.outputs]
        return Source(shape=done.shape, outputs=outputs, producer=producer)

    def _materialise(self, artifact: Artifact, attempt: _Attempt) -> Path:
        """Local bytes of an artifact. Files a step sees as paths are its own copy: what it does to them stays with it."""
        objects = self._base.objects
        if artifact.kind in {"file", "tree"}:
            target = attempt.scratch / "in" / artifact.digest / (artifact.type or "data")
            target.parent.mkdir(parents=True, exist_ok=True)
            if artifact.kind == "tree":
                objects.materialise(artifact.digest, target, internal=True)
                return target
        else:
            target = self._folder / "in" / artifact.digest
            target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            part = target.with_name(target.name + ".part")
            with part.open("wb") as file:
                for chunk in objects.chunks(artifact.digest):
                    file.write(chunk)
            part.replace(target)
        return target

    # --- ending --------------------------------------------------------------------------------------------------------

    def _store(self, writer: ObjectWriter, attempt: _Attempt, how: Ended | Result) -> _Outcome:
        """Put the bytes of an attempt's outputs and log; nothing refers to them yet."""
        result = how if isinstance(how, Result) else read_result(attempt.scratch)
        error = (
            result.error
            if isinstance(how, Result) and result
            else classify(how, result)
            if isinstance(how, Ended)
            else None
        )
        result = result or Result()
        warm.learn(Path(self._run.root), result.modules)
        outputs: list[Artifact] = []
        if error is None:
            try:
                outputs = [self._put(writer, o) for o in result.outputs]
            except (MainspringError, FileNotFoundError) as problem:
                if not isinstance(problem, FileNotFoundError) and problem.status >= 500:
                    raise
                error = StepError(kind="output", type=type(problem).__name__, message=str(problem))
        attempt.log.close()
        path = attempt.log.path
        log = writer.put(path).digest if path.stat().st_size else None
        if error is not None:
            return _Outcome(attempt, result, error, [], log)
        writer.put(self._planner.code_of(attempt.node.step.name))
        unfit = self._planner.disturbed(attempt.node.step, attempt.judgement)
        return _Outcome(attempt, result, None, outputs, log, unfit)

    def _put(self, writer: ObjectWriter, output: Output) -> Artifact:
        path = Path(output.path)
        reference = (
            put_path(writer, path)
            if output.kind == "tree"
            else writer.put(path, table=output.kind == "table")
        )
        if output.kind not in {
            "file",
            "tree",
        }:  # what was just written is the input of the next step: no need to read it back
            target = self._folder / "in" / reference.digest
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                path.replace(target)
        return Artifact(
            name=output.name, kind=output.kind, digest=reference.digest, size=reference.size, type=output.type
        )

    def _commit(self, d: Decision, outcome: _Outcome) -> None:
        attempt, node, error = outcome.attempt, outcome.attempt.node, outcome.error
        execution, project = attempt.execution, self._base.project
        final: StepState = (
            "finished" if error is None else "cancelled" if error.kind == "cancelled" else "failed"
        )
        state.end_execution(
            d.tx,
            project,
            execution.id,
            final,
            result=outcome.result,
            outputs=outcome.outputs,
            log=outcome.log,
            error=error,
            unfit=outcome.unfit,
        )
        seconds = time.monotonic() - attempt.began
        if error is None:
            state.record_finished(
                d, project, execution, pipeline=self._run.pipeline, code=attempt.judgement.ingredients.code, environment=self._run.environment,
                result=outcome.result, outputs=outcome.outputs, log=outcome.log,
            )  # fmt: skip
            node.phase = "done"
            self._done[node.step.name] = Done(outcome.result.shape, outcome.outputs, execution.id)
            self._verified.update(a.digest for a in outcome.outputs)
            self._note("finished", node, "", seconds)
            return
        if outcome.log is not None:
            d.refer(outcome.log, f"step:{execution.id}")
        data = {
            "run": self._run.id,
            "step": node.step.name,
            "attempt": node.attempt,
            "kind": error.kind,
            "type": error.type,
            "message": error.message[:500],
        }
        d.event(EventKind.STEP_FAILED, f"step:{execution.id}", data)
        d.edge(f"run:{self._run.id}", f"step:{execution.id}", "step")
        node.failures += 1
        if error.kind in _RETRIED and node.failures <= node.step.retries and not self._cancelled:
            pause = min(node.step.backoff_s * 2 ** (node.failures - 1), _MAX_BACKOFF_S)
            node.phase, node.not_before = "waiting", time.monotonic() + pause
            self._note(
                "retry", node, f"{error.type or error.kind}: {error.message}; again in {pause:g} s", seconds
            )
            return
        node.phase = "failed"
        self._failed = self._failed or (node.step.name, error)
        self._note("failed", node, f"{error.type or error.kind}: {error.message}", seconds)

    def _note(
        self,
        kind: Literal["cached", "running", "retry", "finished", "failed", "skipped"],
        node: _Node,
        detail: str,
        seconds: float | None = None,
    ) -> None:
        self._events.append(
            PipelineEvent(kind=kind, run=self._run.id, step=node.step.name, detail=detail, seconds=seconds)
        )

    def _tell(self) -> None:
        """Progress is told only of what is committed."""
        events, self._events = self._events, []
        for event in events:
            self._on_event(event)


def _with(execution: StepExecution, **changes: object) -> StepExecution:
    import msgspec

    return msgspec.structs.replace(execution, **changes)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM ends the run in order (state ``interrupted``), where nobody else handles it and this is the main thread."""
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
