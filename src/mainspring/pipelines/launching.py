"""Starting attempts where they run, and storing their outputs: between the decisions of a run, outside its transactions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mainspring.errors import Corrupt, InvalidInput, NotFound
from mainspring.lineage import Foundation
from mainspring.pipelines import attempts, execute, rows, warm
from mainspring.pipelines.executor import Ended, Executor
from mainspring.pipelines.job import Place, Result, Task, read_result
from mainspring.pipelines.logs import CappedLog
from mainspring.pipelines.outcomes import LogText, classify, describe, list_source_keys, log_file, run_folder
from mainspring.pipelines.places import StoredObjects, fetch_inputs
from mainspring.pipelines.planning import Judgement, Planner
from mainspring.pipelines.schedule import Node, Schedule
from mainspring.records.pipelines import (
    Artifact,
    PipelineRun,
    StepError,
    StepExecution,
    StepJob,
    StepResult,
    StepSource,
)
from mainspring.storage.failpoints import declare, failpoint
from mainspring.storage.leases import Lease
from mainspring.storage.objects import ObjectWriter

declare("pipelines.started", "pipelines.spawned")


@dataclass
class Attempt:
    """An attempt that is under way, or one that just ended. ``began`` is monotonic time; ``log`` is open if it runs on this machine."""

    node: Node
    execution: StepExecution
    judgement: Judgement
    scratch: Path
    began: float
    log: CappedLog | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt; ``result`` is None if it ran elsewhere: then the database has it."""

    attempt: Attempt
    result: StepResult | None
    unfit: str | None = None


@dataclass(frozen=True)
class Settings:
    """What a runner passes on to each run. ``opener`` and ``workspace`` let a step open the workspace in its process."""

    workers: int
    lease_ttl_s: float
    opener: str | None
    workspace: dict[str, object]


class Launcher:
    """Starts the attempts of one run, here or elsewhere, and stores their outputs and logs."""

    def __init__(
        self,
        base: Foundation,
        run: PipelineRun,
        planner: Planner,
        lease: Lease,
        schedule: Schedule,
        *,
        executor: Executor,
        settings: Settings,
    ) -> None:
        self._base = base
        self._run = run
        self._planner = planner
        self._lease = lease
        self._schedule = schedule
        self._executor = executor
        self._settings = settings
        self.folder = run_folder(base.home, run.id)

    def is_here(self, node: Node) -> bool:
        """Whether the attempt runs on this machine. An inline step runs in the runner under every executor."""
        return self._executor.is_here or node.step.isolation == "inline"

    def launch(self, attempt: Attempt) -> Result | None:
        """Start an attempt. Returns the result of one that has ended already: an inline one, or one whose inputs cannot be read."""
        failpoint("pipelines.started")
        job = self._make_job(attempt)
        try:
            if not self.is_here(attempt.node):
                job = self._offer_attempt(attempt, job)
            elif attempt.node.step.isolation == "inline":
                return self._run_inline(attempt, job)
            self._executor.start(job, lambda: self._prepare(attempt, job))
        except (Corrupt, NotFound) as error:
            self._invalidate_unreadable_inputs(attempt)
            text = f"an input cannot be read any more: {error}; the step that made it will run again in the next run"
            return Result(error=StepError(kind="input", type=type(error).__name__, message=text))
        except InvalidInput as error:  # a file that it needs cannot be sent to a worker
            return Result(error=StepError(kind="input", type=type(error).__name__, message=str(error)))
        failpoint("pipelines.spawned")
        return None

    def _run_inline(self, attempt: Attempt, job: StepJob) -> Result:
        task, log = self._prepare(attempt, job)
        text = LogText(log)
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            result = execute.execute(task)
        log.close()
        return result

    def _prepare(self, attempt: Attempt, job: StepJob) -> tuple[Task, CappedLog]:
        """Make the place of an attempt on this machine: inputs from the object store, the project's own files, a log."""
        attempt.scratch.mkdir(parents=True, mode=0o700)
        place = Place(
            root=self._run.root,
            scratch=str(attempt.scratch),
            inputs=fetch_inputs(
                job, StoredObjects(self._base.objects), scratch=attempt.scratch, shared=self.folder / "in"
            ),
            opener=self._settings.opener,
            workspace=dict(self._settings.workspace),
        )
        attempt.log = CappedLog(log_file(self._base.home, self._run.id, attempt.execution.id))
        return Task(job=job, place=place), attempt.log

    def _offer_attempt(self, attempt: Attempt, job: StepJob) -> StepJob:
        """Put the project's files that the attempt needs into the object store, and offer the attempt to workers."""
        step, judgement = attempt.node.step, attempt.judgement
        with self._base.objects.writing() as writer:
            files = self._planner.pack_files(writer, step)
            writer.put(self._planner.get_code_document(step.name))
            writer.flush()
            unfit = self._planner.find_changed_file(step, judgement)
            job = msgspec.structs.replace(
                job,
                files=files,
                modules=self._planner.list_modules(),
                variables=self._planner.list_variables(step),
            )
            with self._base.ledger.decision() as d:
                self._base.leases.check(d.tx, self._lease)
                ttl_s, code = self._settings.lease_ttl_s, judgement.ingredients.code
                attempts.offer_step(d, job, code=code, ttl_s=ttl_s, unfit=unfit)
        return job

    def _invalidate_unreadable_inputs(self, attempt: Attempt) -> None:
        with self._base.ledger.decision() as d:
            self._base.leases.check(d.tx, self._lease)
            for name in attempt.node.upstream:
                done = self._schedule.done[name]
                if done.execution is not None and any(not self._is_readable(a) for a in done.outputs):
                    rows.invalidate_entry(d.tx, self._base.project, done.execution)

    def _is_readable(self, artifact: Artifact) -> bool:
        try:
            for _ in self._base.objects.chunks(artifact.digest):
                pass
        except (Corrupt, NotFound):
            return False
        return True

    def _make_job(self, attempt: Attempt) -> StepJob:
        step, run, nodes = attempt.node.step, self._run, self._schedule.nodes
        sources = {}
        for key in list_source_keys(step):
            done = self._schedule.done[key]
            producer = nodes[key].step.function if key in nodes else None
            sources[key] = StepSource(shape=done.shape, outputs=done.outputs, producer=producer)
        return StepJob(
            project=self._base.project,
            run=run.id,
            pipeline=run.pipeline,
            step=step.name,
            execution=attempt.execution.id,
            attempt=attempt.node.attempt,
            function=step.function,
            arguments=step.arguments,
            sources=sources,
            params=dict(run.params),
            at=(run.at or run.started).isoformat(),
            memory_bytes=step.memory_bytes,
            timeout_s=step.timeout_s,
            outputs=step.outputs,
        )

    def store_outcome(self, writer: ObjectWriter, attempt: Attempt, ending: Ended | Result) -> Outcome:
        """Put the bytes of an attempt's outputs and log into the store; the next transaction refers to them."""
        if isinstance(ending, Ended) and not self.is_here(attempt.node):
            return Outcome(attempt, None)
        if isinstance(ending, Result):
            result, error = ending, ending.error
        else:
            returned = read_result(attempt.scratch)
            result, error = returned or Result(), classify(ending, returned)
        warm.remember_modules(Path(self._run.root), result.modules)
        log = None
        if attempt.log is not None:
            attempt.log.close()
            path = attempt.log.path
            log = writer.put(path).digest if path.stat().st_size else None
        described = describe(result, error, writer, log=log, keep=self.folder / "in")
        if described.error is not None:
            return Outcome(attempt, described)
        writer.put(self._planner.get_code_document(attempt.node.step.name))
        return Outcome(
            attempt, described, self._planner.find_changed_file(attempt.node.step, attempt.judgement)
        )
