"""The warm parent of step processes: one per run, single-threaded, imports once and forks for every attempt.

The runner talks to it over a socket pair, one JSON message per packet. When the socket ends (the runner closed it, or died)
it kills every tree it started and ends. It is started by ``executor.LocalProcesses`` as ``python -m``.

    runner → {"op": "spawn", "id": 1, "job": "/.../job.json"} and the write end of the log pipe
    runner → {"op": "kill", "id": 1, "grace_s": 2.0}
    runner ← {"op": "exited", "id": 1, "status": 0}      status as from waitpid
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any

from mainspring.pipelines import processes, worker
from mainspring.pipelines.loading import load_module

_MAX_PACKET = 1 << 16


@dataclass
class _Child:
    number: int
    pid: int
    deadline: float | None = None


class Forkserver:
    """The loop; ``serve`` returns when the runner is gone."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
            os.set_inheritable(end, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            while True:
                watched: list[socket.socket | int] = [self._control, self._wake_read]
                ready, _, _ = select(watched, [], [], self._wait_s())
                if self._wake_read in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                self._reap()
                self._kill_overdue()
                if self._control in ready and not self._receive():
                    return
        finally:
            self._end()

    def _wait_s(self) -> float | None:
        deadlines = [c.deadline for c in self._children.values() if c.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _receive(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _MAX_PACKET, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        message: dict[str, Any] = json.loads(data)
        if message["op"] == "spawn":
            self._spawn(int(message["id"]), Path(message["job"]), descriptors[0])
        elif message["op"] == "kill":
            self._kill(int(message["id"]), float(message["grace_s"]))
        return True

    def _spawn(self, number: int, job: Path, log: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                self._become_step(parent, log)
                code = worker.main(job)
            except BaseException:  # noqa: BLE001 - the last line of a process: say it in the log and end
                traceback.print_exc()
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(log)
        self._children[pid] = _Child(number, pid)

    def _become_step(self, parent: int, log: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        processes.die_with_parent()
        if os.getppid() != parent:  # it died before the line above
            os._exit(70)
        processes.become_subreaper()
        os.setsid()
        self._control.close()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for descriptor in {null, log} - {0, 1, 2}:
            os.close(descriptor)
        gc.enable()

    def _kill(self, number: int, grace_s: float) -> None:
        for child in self._children.values():
            if child.number == number:
                processes.send(child.pid, signal.SIGTERM)
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
        """What a step that ended left behind became our child: no other child is unknown to us."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            strangers = [p for p in processes.children(os.getpid()) if p not in self._children]
            if not strangers:
                return
            for pid in strangers:
                processes.kill_tree(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _end(self) -> None:
        for pid in list(self._children):
            processes.kill_tree(pid)
        processes.kill_tree_below(os.getpid())


def preload(root: Path, files: list[str], modules: list[str]) -> None:
    """Import what steps will need, once; what fails here fails again, and is reported, in the step that needs it."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for file in files:
        with contextlib.suppress(
            BaseException
        ):  # user code; the step's process will meet it again and report it
            load_module((root / file).resolve(), root=root)


def main() -> int:
    setup: dict[str, Any] = json.loads(sys.argv[1])
    processes.become_subreaper()
    control = socket.socket(fileno=int(setup["control"]))
    control.set_inheritable(False)
    preload(Path(setup["root"]), list(setup["files"]), list(setup["modules"]))
    gc.collect()
    gc.freeze()  # pages of what is loaded stay shared with the children
    gc.disable()
    Forkserver(control).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
