"""The warm parent of step processes: single-threaded, imports installed libraries once and forks for every attempt.

The runner (``warm``) talks to it over a socket pair, one JSON message per packet. When the socket ends (the runner closed
it, or died) it kills every process tree that it started and ends; so it does when no message has come for a while. It never imports
code of a project: every step does that anew, in its own process. It is started as ``python -m``.

    runner → {"op": "preload", "modules": ["sklearn.linear_model:LogisticRegression"]}
    runner ← {"op": "loaded", "avoided": []}
    runner → {"op": "spawn", "id": 1, "run": "...", "task": "/.../task.json"} and the write end of the log pipe
    runner → {"op": "kill", "id": 1, "grace_s": 2.0}
    runner ← {"op": "exited", "id": 1, "status": 0}      status as from waitpid
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from select import POLLHUP, poll, select
from typing import Any, NoReturn

from mainspring.pipelines import execute, preload, processes

_MAX_PACKET = 1 << 16
_MAX_AVOIDED = 4
_LOOK_S = 5.0
"""How often it is looked whether the runner is alive, besides the end of its socket."""


@dataclass
class _Child:
    number: int
    pid: int
    deadline: float | None = None


class Forkserver:
    """Forks steps and kills them on request; ``serve`` returns when the runner has closed the socket or is dead."""

    def __init__(
        self, control: socket.socket, *, idle_s: float, wanted: list[str], avoid: frozenset[str]
    ) -> None:
        self._control = control
        self._idle_s = idle_s
        self._wanted = wanted
        self._avoid = avoid
        self._children: dict[int, _Child] = {}
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
            os.set_inheritable(end, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        parent, heard = os.getppid(), time.monotonic()
        try:
            while True:
                watched: list[socket.socket | int] = [self._control, self._wake_read]
                ready, _, _ = select(watched, [], [], self._wait_s())
                if ready:
                    heard = time.monotonic()
                elif os.getppid() != parent:
                    return  # the runner is dead, whoever may still hold its end of the socket
                elif not self._children and time.monotonic() - heard >= self._idle_s:
                    return
                if self._wake_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                self._reap()
                self._kill_overdue()
                if self._control in ready and not self._receive():
                    return
        finally:
            self._kill_all()

    def _wait_s(self) -> float:
        deadlines = [c.deadline for c in self._children.values() if c.deadline is not None]
        if deadlines:
            return min(_LOOK_S, max(0.0, min(deadlines) - time.monotonic()))
        return min(_LOOK_S, self._idle_s)

    def _receive(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _MAX_PACKET, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        message: dict[str, Any] = json.loads(data)
        if message["op"] == "spawn":
            self._spawn(int(message["id"]), str(message["run"]), Path(message["task"]), descriptors[0])
        elif message["op"] == "preload":
            self.preload(list(message["modules"]))
        elif message["op"] == "kill":
            self._kill(int(message["id"]), float(message["grace_s"]))
        return True

    def preload(self, names: list[str]) -> None:
        self._wanted += names
        # An import takes seconds: the runner may have ended meanwhile, and then no further one is wanted.
        threaded = preload.load_modules(names, avoid=self._avoid, until=self._is_abandoned)
        if self._is_abandoned():
            return
        if threaded is not None and not self._children:
            if len(self._avoid) >= _MAX_AVOIDED:
                self._wanted = []
            self._restart(self._avoid | {threaded})
        freeze()
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"op": "loaded", "avoided": sorted(self._avoid)}).encode())

    def _is_abandoned(self) -> bool:
        """Whether the runner has closed its end of the socket, or is dead."""
        ends = poll()
        ends.register(self._control, 0)
        return any(event & POLLHUP for _, event in ends.poll(0))

    def _restart(self, avoid: frozenset[str]) -> NoReturn:
        """Replace this process by a new one that avoids the library; messages that the runner sends meanwhile wait in the socket."""
        setup = {
            "control": self._control.fileno(),
            "idle_s": self._idle_s,
            "modules": self._wanted,
            "avoid": sorted(avoid),
        }
        self._control.set_inheritable(True)
        os.execv(  # noqa: S606 - this same program
            sys.executable, [sys.executable, "-P", "-m", "mainspring.pipelines.forkserver", json.dumps(setup)]
        )

    def _spawn(self, number: int, run: str, task: Path, log: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self._become_step(parent, run, log)
                code = execute.main(task)
            except BaseException:  # noqa: BLE001 - nobody is left to handle it: write it to the step's log and end
                traceback.print_exc()
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(log)
        self._children[pid] = _Child(number, pid)

    def _become_step(self, parent: int, run: str, log: int) -> None:
        """In the new child: reset signals, leave the server's session, and redirect output to the log."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        processes.die_with_parent()
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(70)
        processes.become_subreaper()
        os.setsid()
        processes.set_cookie(run)
        # From here on the runner that resumes the run finds this process by its cookie. If our runner is dead already, that one may
        # have searched before the cookie was set: then this process must end by itself.
        if self._is_abandoned():
            os._exit(70)
        self._control.close()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for descriptor in {null, log} - {0, 1, 2}:
            os.close(descriptor)
        gc.enable()
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:  # otherwise every step would inherit, and draw, the same random numbers
            numpy_random.seed()

    def _kill(self, number: int, grace_s: float) -> None:
        for child in self._children.values():
            if child.number == number:
                processes.send_signal(child.pid, signal.SIGTERM)
                child.deadline = time.monotonic() + grace_s

    def _kill_overdue(self) -> None:
        for child in list(self._children.values()):
            if child.deadline is not None and time.monotonic() >= child.deadline:
                child.deadline = None
                processes.kill_tree(child.pid)
                self._reap()

    def _reap(self) -> None:
        ended = []
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                child = self._children.pop(pid, None)
                if child is not None:
                    ended.append((child.number, status))
        if ended:
            self._kill_orphans()
        for number, status in ended:
            with contextlib.suppress(OSError):
                self._control.send(json.dumps({"op": "exited", "id": number, "status": status}).encode())

    def _kill_orphans(self) -> None:
        """Kill what steps that ended left behind: as subreaper this process adopted it, and it knows all its own children."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            orphans = [p for p in processes.children(os.getpid()) if p not in self._children]
            if not orphans:
                return
            for pid in orphans:
                processes.kill_tree(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _kill_all(self) -> None:
        for pid in list(self._children):
            processes.kill_tree(pid)
        processes.kill_tree_below(os.getpid())


def freeze() -> None:
    """Exclude everything that is loaded from garbage collection, so that its memory pages stay shared with the children."""
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> NoReturn:
    setup: dict[str, Any] = json.loads(sys.argv[1])
    processes.become_subreaper()
    control = socket.socket(fileno=int(setup["control"]))
    control.set_inheritable(False)
    wanted, avoid = list(setup.get("modules", ())), frozenset(setup.get("avoid", ()))
    server = Forkserver(control, idle_s=float(setup["idle_s"]), wanted=[], avoid=avoid)
    if avoid and "modules" in setup:  # restarted: the preload request that led to it is not answered yet
        server.preload(wanted)
    freeze()
    server.serve()
    # Without the destructors of what was imported, some of which wait for threads: nothing here is left to be written.
    os._exit(0)


if __name__ == "__main__":
    main()
