"""``python -m mainspring.pipelines.worker --url URL --token-file FILE``: runs steps of pipelines whose runner is on another machine.

It asks the server for steps that wait (of runs with ``executor = "worker"``), takes one, fetches its code and inputs by their
digests, runs it in a child process as a runner does, sends outputs and log, and finishes it. One step at a time: start several
to run more at once. On SIGTERM or SIGINT it gives the step back and ends. When it is killed, its children die with it, and the step
is tried again once no heartbeat has come for the length of the lease.
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
"""``module:function`` that opens the workspace behind a server, for this program and for the steps that it runs. It is imported by name,
because a room does not import the layers above it."""

IDLE_S = 0.5
PATIENCE_S = 600.0
"""How long, in seconds, the result of a finished step is sent again to a server that does not answer or cannot take it."""

_RETRY_S = 1.0
_POLL_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerSettings:
    """What is the same for every step of this worker. ``workspace``: keyword arguments of :data:`OPENER`."""

    name: str
    folder: Path
    environment: str
    workspace: dict[str, object]


class Worker:
    """Takes steps of one project and runs them, one at a time."""

    def __init__(self, pipelines: Pipelines, objects: Uploads, settings: WorkerSettings) -> None:
        self._pipelines = pipelines
        self._objects = objects
        self._settings = settings
        self._stopped = False

    def stop(self) -> None:
        """Give the current step back and return from :meth:`run`. May be called from a signal handler."""
        self._stopped = True  # not a threading.Event: the thread that the signal interrupts may hold its lock

    def run(self, *, once: bool = False) -> None:
        """Run steps until :meth:`stop`; with ``once`` at most one, if any waits.

        Raises the error of a call that the server refuses (status below 500); other errors are retried.
        """
        while not self._stopped:
            try:
                lease = self._take_step()
            except MainspringError as error:
                if error.status < 500:
                    raise
                _print_line(f"{error}; trying again")
                lease = None
            if lease is not None:
                self._run_step(lease)
            if once:
                return
            if lease is None:
                time.sleep(IDLE_S)

    def _take_step(self) -> StepLease | None:
        for step in self._pipelines.list_waiting_steps():
            with contextlib.suppress(Conflict, NotFound):  # another was first, or its run has stopped
                return self._pipelines.begin_step(
                    execution=step.execution,
                    worker=self._settings.name,
                    environment=self._settings.environment,
                )
        return None

    def _run_step(self, lease: StepLease) -> None:
        job = lease.job
        _print_line(f"step {job.step} of run {job.run}, attempt {job.attempt}")
        scratch = self._settings.folder / job.execution
        beats = _Heartbeats(self._pipelines, lease)
        beats.start()
        try:
            result = self._run_attempt(job, scratch, beats)
            if not beats.fenced:
                self._finish_step(lease, result, beats)
        except MainspringError as error:
            if isinstance(error, (PermissionDenied, Unauthenticated)):
                raise  # the token does not allow this worker to run steps
            _print_line(f"step {job.step}: {error}; it will be tried again")
        finally:
            beats.stop()
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_attempt(self, job: StepJob, scratch: Path, beats: _Heartbeats) -> StepResult:
        """Run the job and store its outputs; an error of the step is part of the result."""
        try:
            scratch.mkdir(mode=0o700)
            return self._run_job(job, scratch, beats)
        except OSError as error:  # a full disk or an unreadable file: the step may succeed on another machine
            _print_line(f"step {job.step}: {error}; it is given back")
            return StepResult(error=StepError(kind="lost", type=type(error).__name__, message=str(error)))

    def _run_job(self, job: StepJob, scratch: Path, beats: _Heartbeats) -> StepResult:
        try:
            task = self._prepare_task(job, scratch)
        except (Corrupt, InvalidInput, NotFound) as error:
            text = f"an input or source file of the step is not available: {error}"
            return StepResult(error=StepError(kind="input", type=type(error).__name__, message=text))
        except MainspringError as error:  # the transfer failed: the step may succeed on another machine
            if error.status < 500:
                raise
            return StepResult(error=StepError(kind="lost", type=type(error).__name__, message=str(error)))
        log = CappedLog(scratch / "log")
        result, failure = self._execute_task(task, log, beats)
        if beats.fenced:
            return StepResult(error=failure)
        target = SentObjects(self._objects, retry=lambda call: self._retry(call, beats))
        try:
            digest = target.put(log.path).digest if log.path.stat().st_size else None
        except MainspringError as error:
            return _refused_result(error)
        return describe(result, failure, target, log=digest, keep=self._inputs_folder(job))

    def _prepare_task(self, job: StepJob, scratch: Path) -> Task:
        _check_variables(job)
        source, root = ServedObjects(self._objects), scratch / "project"
        if job.files is None:
            root.mkdir()
        else:
            source.write_tree(job.files, root)
        inputs = fetch_inputs(job, source, scratch=scratch, shared=self._inputs_folder(job))
        place = Place(
            root=str(root),
            scratch=str(scratch),
            inputs=inputs,
            opener=OPENER,
            workspace=self._settings.workspace,
        )
        return Task(job=job, place=place)

    def _inputs_folder(self, job: StepJob) -> Path:
        """The folder with inputs and outputs of this run, for its next steps; the folders of other runs are removed."""
        kept = self._settings.folder / f"run-{job.run}"
        for other in self._settings.folder.glob("run-*"):
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)
        kept.mkdir(exist_ok=True)
        return kept

    def _execute_task(
        self, task: Task, log: CappedLog, beats: _Heartbeats
    ) -> tuple[Result, StepError | None]:
        job = task.job
        # All steps of this worker use one warm server: everything that differs between them is in the task.
        executor = LocalProcesses(run=job.execution, root=self._settings.folder, modules=job.modules)
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
        returned = read_result(Path(task.place.scratch))
        result, error = returned or Result(), classify(ended[0], returned)
        if ended[0].cancelled and not beats.is_over:
            error = StepError(kind="lost", type=RETURNED, message=f"worker {self._settings.name} was stopped")
        warm.remember_modules(self._settings.folder, result.modules)
        return result, error

    def _finish_step(self, lease: StepLease, result: StepResult, beats: _Heartbeats) -> None:
        execution, token = lease.job.execution, lease.token

        def finish(result: StepResult) -> StepExecution:
            return self._retry(
                lambda: self._pipelines.finish_step(execution=execution, token=token, result=result), beats
            )

        try:
            ended = finish(result)
        except MainspringError as error:
            ended = finish(_refused_result(error))
        _print_line(f"step {lease.job.step}: {ended.state}")

    def _retry(self, call: Callable[[], T], beats: _Heartbeats) -> T:
        """Make the call, and repeat it for :data:`PATIENCE_S` while the server fails (status 500 and above) or does not answer.

        Raises at once what the server refuses, and any error once the attempt is lost or this worker was stopped.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except MainspringError as error:
                refused = error.status < 500
                if refused or beats.fenced or self._stopped or time.monotonic() > until:
                    raise
                time.sleep(_RETRY_S)


def _refused_result(error: MainspringError) -> StepResult:
    """The failure to record for a step whose result the server refuses: another attempt would be refused too.

    Raises any other error again.
    """
    if isinstance(error, (Fenced, PermissionDenied, Unauthenticated)) or error.status >= 500:
        raise error
    text = f"the server refuses the result of the step: {error}"[:MAX_MESSAGE]
    return StepResult(error=StepError(kind="output", type=type(error).__name__, message=text))


def _check_variables(job: StepJob) -> None:
    """Environment variables that the code reads must have the values that are part of the runner's cache key."""
    for name, wanted in job.variables.items():
        if variable_digest(name) != wanted:
            raise InvalidInput(
                "an environment variable that the step reads has another value here than where the run was started",
                value=name,
                place=f"step {job.step}",
                next_step="Start the worker with the same value, or pass the value to the step as an argument.",
            )


class _Heartbeats(threading.Thread):
    """Sends heartbeats for an attempt, also while its outputs are sent, and records whether to go on.

    ``fenced``: the attempt is lost, nothing of it can be committed. ``cancelled``: its run was cancelled.
    """

    def __init__(self, pipelines: Pipelines, lease: StepLease) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self._pipelines = pipelines
        self._lease = lease
        self._ended = threading.Event()
        self.fenced = False
        self.cancelled = False

    @property
    def is_over(self) -> bool:
        """Whether the attempt is lost or cancelled, so that its process can be killed."""
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
            ):  # the next call may succeed; the server decides whether the attempt is lost by then
                continue

    def stop(self) -> None:
        self._ended.set()
        self.join()


# --- the program -----------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    arguments = _parse_arguments(argv)
    try:
        with _make_folder(arguments.dir) as folder, _open_workspace(arguments) as (workspace, options):
            from mainspring.tracking.capture import environment_digest

            settings = WorkerSettings(arguments.name, folder, environment_digest(), options)
            worker = Worker(workspace.pipelines, workspace.objects, settings)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: worker.stop())
            _print_line(
                f"worker {arguments.name} waits for steps of project {arguments.project} at {arguments.url}"
            )
            worker.run(once=arguments.once)
    except MainspringError as error:
        _print_line(str(error))
        return 1
    return 0


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
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
def _open_workspace(arguments: argparse.Namespace) -> Iterator[tuple[Any, dict[str, object]]]:
    options = {
        "url": arguments.url,
        "token_file": str(arguments.token_file.absolute()),
        "project": arguments.project,
    }
    module, _, name = OPENER.partition(":")
    workspace = getattr(importlib.import_module(module), name)(**options)
    with contextlib.closing(workspace):
        yield workspace, options


@contextlib.contextmanager
def _make_folder(parent: Path | None) -> Iterator[Path]:
    """A folder for this worker below ``parent``; folders of killed workers are removed."""
    with contextlib.ExitStack() as locks:
        if parent is None:
            folder = Path(tempfile.mkdtemp(prefix="worker-")).resolve()
        else:
            parent.mkdir(parents=True, exist_ok=True)
            # Lock order: the parent, then the worker's folder. Without the parent's lock, a worker that starts at the same time could
            # remove this folder before it is locked.
            with _lock_file(parent / "lock"):
                _remove_abandoned(parent)
                folder = Path(tempfile.mkdtemp(prefix="worker-", dir=parent)).resolve()
                locks.enter_context(_lock_file(folder / "lock"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for left in parent.glob("worker-*"):
        with contextlib.suppress(OSError), _lock_file(left / "lock", wait=False):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when this process dies.

    Without ``wait`` raises :class:`BlockingIOError` if another process holds it.
    """
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _print_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
