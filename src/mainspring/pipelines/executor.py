"""Where attempts at steps run: the contract of executors, and the local one, which forks from a warm server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Protocol

from mainspring.errors import Unavailable
from mainspring.pipelines import processes, warm
from mainspring.pipelines.job import Task, write_task
from mainspring.pipelines.logs import CappedLog
from mainspring.pipelines.warm import WarmServer
from mainspring.records.pipelines import StepJob

GRACE_S = 2.0
_READ = 1 << 16


@dataclass(frozen=True)
class Ended:
    """The end of an attempt: none of its processes is left. ``status`` is as from waitpid; None if it is unknown."""

    execution: str
    status: int | None
    timed_out: bool
    cancelled: bool


class Executor(Protocol):
    """Runs jobs. Used by one thread."""

    @property
    def is_here(self) -> bool:
        """Whether attempts run on this machine, where the project's files are. Otherwise they are first offered in the database, and
        a worker begins and finishes them by the operations."""
        ...

    def start(self, job: StepJob, prepare: Callable[[], tuple[Task, CappedLog]]) -> None:
        """Begin an attempt; after ``job.timeout_s`` seconds its whole process tree is killed.

        ``prepare`` fetches its inputs to this machine and opens its log; an executor that runs it elsewhere never calls it.
        """
        ...

    def poll(self, *, wait_s: float) -> list[Ended]:
        """Attempts that ended since the last call; waits at most ``wait_s`` seconds for the first.

        Elsewhere an attempt ends when its result was committed, or when no heartbeat came in time.
        """
        ...

    def keep_watching(self, execution: str) -> None:
        """Watch an attempt again that :meth:`poll` returned although it has not ended: a heartbeat came meanwhile. Only elsewhere."""
        ...

    def kill(self, execution: str) -> None:
        """End an attempt early: SIGTERM, a grace period, then SIGKILL for the whole tree. :meth:`poll` still returns it."""
        ...

    def close(self) -> None:
        """Kill the attempts that still run and free all resources. Idempotent."""
        ...


@dataclass
class _Running:
    number: int
    log: CappedLog
    pipe: int
    deadline: float | None
    timed_out: bool = False
    cancelled: bool = False


class LocalProcesses:
    """Forks every attempt from a warm server (``warm``), which it takes with the first one and gives back at the end."""

    def __init__(
        self, *, run: str, root: Path, modules: Sequence[str] = (), grace_s: float = GRACE_S
    ) -> None:
        self._run = run
        self._root = root
        self._modules = list(modules)
        self._grace_s = grace_s
        self._server: WarmServer | None = None
        self._running: dict[str, _Running] = {}

    is_here = True

    def start(self, job: StepJob, prepare: Callable[[], tuple[Task, CappedLog]]) -> None:
        task, log = prepare()
        if self._server is None:
            self._server = warm.take_server(self._root, self._modules)
        server = self._server
        server.spawned += 1
        read, write = os.pipe()
        os.set_blocking(read, False)
        message = {"op": "spawn", "id": server.spawned, "run": self._run, "task": str(write_task(task))}
        try:
            socket.send_fds(server.control, [json.dumps(message).encode()], [write])
        except OSError as error:
            os.close(read)
            raise Unavailable(
                f"the parent of the step processes is gone: {error}", next_step="Resume the run."
            ) from error
        finally:
            os.close(write)
        deadline = None if job.timeout_s is None else time.monotonic() + job.timeout_s
        self._running[job.execution] = _Running(server.spawned, log, read, deadline)

    def poll(self, *, wait_s: float) -> list[Ended]:
        until = time.monotonic() + wait_s
        while True:
            self._enforce_deadlines()
            wait = max(
                0.0,
                min([until, *(r.deadline for r in self._running.values() if r.deadline is not None)])
                - time.monotonic(),
            )
            watched: list[socket.socket | int] = [r.pipe for r in self._running.values() if r.pipe >= 0]
            if self._server is not None:
                watched.append(self._server.control)
            ready = select(watched, [], [], wait)[0]
            for running in self._running.values():
                if running.pipe in ready:
                    _drain_pipe(running, once=True)
            ended = self._receive() if self._server is not None and self._server.control in ready else []
            if ended or time.monotonic() >= until:
                return ended

    def keep_watching(self, execution: str) -> None:
        """Does nothing: a process that has ended cannot run again."""

    def kill(self, execution: str) -> None:
        running = self._running.get(execution)
        if running is not None and not running.timed_out:
            running.cancelled = True
            server = self._server
            if server is not None and server.waiting and all(r.cancelled for r in self._running.values()):
                # The server is importing and reads no message meanwhile. No step has begun, so none needs a grace period.
                server.waiting = 0  # it is killed here, so stop() must not blame its imports
                processes.kill_tree(server.process.pid)
                return
            self._send_kill(server, running, grace_s=self._grace_s)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        if self._end_running(server):
            processes.kill_by_cookie(self._run)
            warm.return_server(server)
        else:
            server.stop()
            processes.kill_by_cookie(self._run)
        for running in self._running.values():
            _close_running(running)
        self._running.clear()

    def _end_running(self, server: WarmServer) -> bool:
        """Kill the attempts that still run; returns whether the server has confirmed the end of all of them."""
        for running in self._running.values():
            self._send_kill(server, running, grace_s=0.0)
        left = {r.number for r in self._running.values()}
        until = time.monotonic() + self._grace_s + 10
        while left and (wait := until - time.monotonic()) > 0:
            if not select([server.control], [], [], wait)[0]:
                break
            message = server.receive()
            if message is None:
                break
            left.discard(message.get("id"))
        return not left and server.is_alive()

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            if running.deadline is None or now < running.deadline:
                continue
            if not running.timed_out:
                running.timed_out = True
                running.deadline = now + self._grace_s + 10
                self._send_kill(self._server, running, grace_s=self._grace_s)
            else:  # the server did not answer the kill in time: it hangs in an import
                running.deadline = None
                if self._server is not None:
                    processes.kill_tree(self._server.process.pid)
                processes.kill_by_cookie(self._run)

    def _send_kill(self, server: WarmServer | None, running: _Running, *, grace_s: float) -> None:
        if server is not None:
            with contextlib.suppress(OSError):
                server.control.send(
                    json.dumps({"op": "kill", "id": running.number, "grace_s": grace_s}).encode()
                )

    def _receive(self) -> list[Ended]:
        assert self._server is not None  # noqa: S101 - only called with a server
        message = self._server.receive()
        if message is None:
            return self._end_all()
        if message["op"] != "exited":
            return []
        for execution, running in list(self._running.items()):
            if running.number == message["id"]:
                del self._running[execution]
                _close_running(running)
                return [Ended(execution, int(str(message["status"])), running.timed_out, running.cancelled)]
        return []

    def _end_all(self) -> list[Ended]:
        """The server died, and its children with it. The next start makes a new one."""
        ended = [Ended(e, None, r.timed_out, r.cancelled) for e, r in self._running.items()]
        self.close()
        return ended


def _drain_pipe(running: _Running, *, once: bool = False) -> None:
    """Move the step's output from the pipe to its log; with ``once`` one read only, so that one step cannot hold up the others."""
    while running.pipe >= 0:
        try:
            data = os.read(running.pipe, _READ)
        except BlockingIOError:
            return
        if not data:
            os.close(running.pipe)
            running.pipe = -1
            return
        running.log.write(data)
        if once:
            return


def _close_running(running: _Running) -> None:
    _drain_pipe(running)
    if running.pipe >= 0:
        os.close(running.pipe)
        running.pipe = -1
    running.log.close()
