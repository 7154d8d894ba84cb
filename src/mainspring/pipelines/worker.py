"""``python -m mainspring.pipelines.worker --url URL --token-file FILE``: runs steps of pipelines whose runner is elsewhere.

It asks the server for steps that wait (of runs with ``executor = "worker"``), takes one, fetches its code and inputs by their
digests, runs it in a child process as a runner does, sends outputs and log, and finishes it. One step at a time: start several
for more. On SIGTERM or SIGINT it gives the step back and ends; when it is killed, its children die with it and the step is tried
again as soon as its heartbeats have been missing for long enough.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mainspring.errors import (
    Conflict,
    Corrupt,
    Fenced,
    InvalidInput,
    MainspringError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from mainspring.lineage.uploads import Uploads
from mainspring.pipelines import warm
from mainspring.pipelines.arrivals import MAX_MESSAGE
from mainspring.pipelines.executor import LocalProcesses
from mainspring.pipelines.job import Place, Result, Task, read_result
from mainspring.pipelines.keys import variable_digest
from mainspring.pipelines.logs import CappedLog
from mainspring.pipelines.operations import Pipelines
from mainspring.pipelines.outcomes import classify, describe
from mainspring.pipelines.places import SentObjects, ServedObjects, fetch_inputs
from mainspring.pipelines.schedule import RETURNED
from mainspring.records.pipelines import StepError, StepExecution, StepJob, StepLease, StepResult

OPENER = "mainspring.remote:open_served"
"""Opens the workspace behind a server, for this program and for the steps that it runs; a room does not import what stands above it."""

IDLE_S = 0.5
PATIENCE_S = 600.0
"""So long a finished step's result is offered to a server that does not answer, or has no time or room for it."""

_RETRY_S = 1.0
_POLL_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Here:
    """What is the same for every step of this worker. ``workspace`` are the keywords of :data:`OPENER`."""

    name: str
    folder: Path
    environment: str
    workspace: dict[str, object]


class Worker:
    """Takes steps of one project and runs them, one at a time."""

    def __init__(self, pipelines: Pipelines, objects: Uploads, here: Here) -> None:
        self._pipelines = pipelines
        self._objects = objects
        self._here = here
        self._stopped = False

    def stop(self) -> None:
        """Give the current step back and return from :meth:`run`. May be called from a signal handler."""
        self._stopped = True  # no event: its lock may be held by the very thread that a signal interrupts

    def run(self, *, once: bool = False) -> None:
        """Run steps until :meth:`stop`; with ``once`` at most one, if any waits. Raises what the server refuses for good."""
        while not self._stopped:
            try:
                lease = self._take()
            except MainspringError as error:
                if error.status < 500:
                    raise
                _say(f"{error}; trying again")
                lease = None
            if lease is not None:
                self._work(lease)
            if once:
                return
            if lease is None:
                time.sleep(IDLE_S)

    def _take(self) -> StepLease | None:
        for step in self._pipelines.list_waiting_steps():
            with contextlib.suppress(Conflict, NotFound):  # another was first, or its run has stopped
                return self._pipelines.begin_step(
                    execution=step.execution, worker=self._here.name, environment=self._here.environment
                )
        return None

    def _work(self, lease: StepLease) -> None:
        job = lease.job
        _say(f"step {job.step} of run {job.run}, attempt {job.attempt}")
        scratch = self._here.folder / job.execution
        beats = _Beats(self._pipelines, lease)
        beats.start()
        try:
            result = self._attempt(job, scratch, beats)
            if not beats.fenced:
                self._finish(lease, result, beats)
        except MainspringError as error:
            if isinstance(error, (PermissionDenied, Unauthenticated)):
                raise  # this worker may not do what it is here for
            _say(f"step {job.step}: {error}; it will be tried again")
        finally:
            beats.end()
            shutil.rmtree(scratch, ignore_errors=True)

    def _attempt(self, job: StepJob, scratch: Path, beats: _Beats) -> StepResult:
        """Run the job and put what it left; whatever goes wrong with it is in the result."""
        try:
            scratch.mkdir(mode=0o700)
            return self._run_job(job, scratch, beats)
        except OSError as error:  # a full disk, a file that cannot be read: another machine may fare better
            _say(f"step {job.step}: {error}; it is given back")
            return StepResult(error=StepError(kind="lost", type=type(error).__name__, message=str(error)))

    def _run_job(self, job: StepJob, scratch: Path, beats: _Beats) -> StepResult:
        try:
            task = self._prepare(job, scratch)
        except (Corrupt, InvalidInput, NotFound) as error:
            text = f"what the step needs is not to be had: {error}"
            return StepResult(error=StepError(kind="input", type=type(error).__name__, message=text))
        except MainspringError as error:  # on the way to this machine: another may fare better
            if error.status < 500:
                raise
            return StepResult(error=StepError(kind="lost", type=type(error).__name__, message=str(error)))
        log = CappedLog(scratch / "log")
        result, failure = self._execute(task, log, beats)
        if beats.fenced:
            return StepResult(error=failure)
        target = SentObjects(self._objects, patiently=lambda call: self._patiently(call, beats))
        try:
            digest = target.put(log.path).digest if log.path.stat().st_size else None
        except MainspringError as error:
            return _refused(error)
        return describe(result, failure, target, log=digest, keep=self._inputs(job))

    def _prepare(self, job: StepJob, scratch: Path) -> Task:
        _check_variables(job)
        source, root = ServedObjects(self._objects), scratch / "project"
        if job.files is None:
            root.mkdir()
        else:
            source.write_tree(job.files, root)
        inputs = fetch_inputs(job, source, scratch=scratch, shared=self._inputs(job))
        place = Place(
            root=str(root),
            scratch=str(scratch),
            inputs=inputs,
            opener=OPENER,
            workspace=self._here.workspace,
        )
        return Task(job=job, place=place)

    def _inputs(self, job: StepJob) -> Path:
        """Inputs and outputs of the run at hand, for its further steps; those of other runs go."""
        kept = self._here.folder / f"run-{job.run}"
        for other in self._here.folder.glob("run-*"):
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)
        kept.mkdir(exist_ok=True)
        return kept

    def _execute(self, task: Task, log: CappedLog, beats: _Beats) -> tuple[Result, StepError | None]:
        job = task.job
        # The warm server is one for all steps of this worker: what differs between them is in the task.
        executor = LocalProcesses(run=job.execution, root=self._here.folder, modules=job.modules)
        try:
            executor.start(job, lambda: (task, log))
            killed, ended = False, executor.poll(wait_s=_POLL_S)
            while not ended:
                if not killed and (self._stopped or beats.is_over):
                    executor.kill(job.execution)
                    killed = True
                ended = executor.poll(wait_s=_POLL_S)
        finally:
            executor.close()
        found = read_result(Path(task.place.scratch))
        result, error = found or Result(), classify(ended[0], found)
        if ended[0].cancelled and not beats.is_over:
            error = StepError(kind="lost", type=RETURNED, message=f"worker {self._here.name} was stopped")
        warm.learn(self._here.folder, result.modules)
        return result, error

    def _finish(self, lease: StepLease, result: StepResult, beats: _Beats) -> None:
        execution, token = lease.job.execution, lease.token

        def finish(result: StepResult) -> StepExecution:
            return self._patiently(
                lambda: self._pipelines.finish_step(execution=execution, token=token, result=result), beats
            )

        try:
            ended = finish(result)
        except MainspringError as error:
            ended = finish(_refused(error))
        _say(f"step {lease.job.step}: {ended.state}")

    def _patiently(self, call: Callable[[], T], beats: _Beats) -> T:
        """The call, again and again while the server does not answer or cannot take it; less long once this worker is to end."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except MainspringError as error:
                refused = error.status < 500
                if refused or beats.fenced or self._stopped or time.monotonic() > until:
                    raise
                time.sleep(_RETRY_S)


def _refused(error: MainspringError) -> StepResult:
    """The result of a step whose own result the server refuses: tried again, it would be refused again. Raises any other error."""
    if isinstance(error, (Fenced, PermissionDenied, Unauthenticated)) or error.status >= 500:
        raise error
    text = f"the server refuses what the step left: {error}"[:MAX_MESSAGE]
    return StepResult(error=StepError(kind="output", type=type(error).__name__, message=text))


def _check_variables(job: StepJob) -> None:
    """A result under the key that the runner made must have come from the values that the key names."""
    for name, wanted in job.variables.items():
        if variable_digest(name) != wanted:
            raise InvalidInput(
                "this variable of the environment is not here what it is where the run was started",
                value=name,
                place=f"step {job.step}",
                next_step="Start the worker with the same value, or pass the value to the step as an argument.",
            )


class _Beats(threading.Thread):
    """Keeps an attempt alive, also while its outputs are sent, and hears whether to go on."""

    def __init__(self, pipelines: Pipelines, lease: StepLease) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self._pipelines = pipelines
        self._lease = lease
        self._ended = threading.Event()
        self.fenced = False
        self.cancelled = False

    @property
    def is_over(self) -> bool:
        """The attempt is not wanted any more."""
        return self.fenced or self.cancelled

    def run(self) -> None:
        while not self._ended.wait(self._lease.ttl_s / 3):
            try:
                beat = self._pipelines.heartbeat_step(
                    execution=self._lease.job.execution, token=self._lease.token
                )
                self.cancelled = self.cancelled or not beat.go_on
            except (Fenced, NotFound):
                self.fenced = not self._ended.is_set()
                return
            except (
                MainspringError
            ):  # it may answer next time; whether the attempt is lost by then, it will say
                continue

    def end(self) -> None:
        self._ended.set()
        self.join()


# --- the program -----------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    given = _arguments(argv)
    try:
        with _own_folder(given.dir) as folder, _workspace(given) as (workspace, options):
            from mainspring.tracking.capture import environment_digest

            here = Here(given.name, folder, environment_digest(), options)
            worker = Worker(workspace.pipelines, workspace.objects, here)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: worker.stop())
            _say(f"worker {given.name} waits for steps of project {given.project} at {given.url}")
            worker.run(once=given.once)
    except MainspringError as error:
        _say(str(error))
        return 1
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mainspring.pipelines.worker", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--url", required=True, help="the control plane, http://host:port")
    parser.add_argument(
        "--token-file", type=Path, required=True, help="a file that holds a token with the role editor"
    )
    parser.add_argument(
        "--project", default="default", help="the project's name on that server (default: default)"
    )
    parser.add_argument("--once", action="store_true", help="run one step, if one waits, and end")
    parser.add_argument(
        "--dir", type=Path, help="where to keep files while steps run (default: a temporary folder)"
    )
    parser.add_argument(
        "--name", default=f"{socket.gethostname()}/{os.getpid()}", help="what executions are recorded with"
    )
    return parser.parse_args(argv)


@contextlib.contextmanager
def _workspace(given: argparse.Namespace) -> Iterator[tuple[Any, dict[str, object]]]:
    options = {"url": given.url, "token_file": str(given.token_file.absolute()), "project": given.project}
    module, _, name = OPENER.partition(":")
    workspace = getattr(importlib.import_module(module), name)(**options)
    with contextlib.closing(workspace):
        yield workspace, options


@contextlib.contextmanager
def _own_folder(parent: Path | None) -> Iterator[Path]:
    """A folder of this worker's own below ``parent``; what killed workers left there goes."""
    with contextlib.ExitStack() as held:
        if parent is None:
            folder = Path(tempfile.mkdtemp(prefix="worker-")).resolve()
        else:
            parent.mkdir(parents=True, exist_ok=True)
            with _locked(
                parent / "lock"
            ):  # or a worker that starts now would take a new folder for one that was left
                _clear(parent)
                folder = Path(tempfile.mkdtemp(prefix="worker-", dir=parent)).resolve()
                held.enter_context(_locked(folder / "lock"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear(parent: Path) -> None:
    for left in parent.glob("worker-*"):
        with contextlib.suppress(OSError), _locked(left / "lock", wait=False):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a file; the system gives it back when this process dies. Raises :class:`BlockingIOError` without ``wait``."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
