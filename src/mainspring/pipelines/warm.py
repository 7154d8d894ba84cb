"""Warm servers of this process: started once, used by one run after another, ended with the process.

A server is taken by one run at a time, so its socket needs no lock. It fits a run with the same root and the same
environment variables; libraries it lacks it imports on being told, so it only ever gets warmer. What steps of a project
imported by themselves (inside functions, or in libraries) is learnt from their results and imported before the next run.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from mainspring.pipelines import processes

IDLE_S = 900.0
"""A server that nobody has used for so long ends by itself: it holds a few hundred megabytes."""

_MAX_IDLE = 2
_MAX_LEARNT = 4000
_PACKET = 24_000
_NAME = re.compile(r"[\w.]{1,200}(:[\w*]{1,200})?")
_OURS = frozenset({processes.COOKIE, processes.OWNER, "ORT_DISABLE_TELEMETRY"})

_lock = threading.Lock()
_idle: list[WarmServer] = []
_learnt: dict[Path, dict[str, None]] = {}
_avoided: set[str] = set()
"""Packages that start threads when they are imported, as servers of this process found out."""

_fragile: set[Path] = set()
"""Roots whose server died while it imported libraries: theirs are started without."""


class WarmServer:
    """The process, and our end of its socket. ``ready`` once it has imported what it was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = _environment()
        self.loaded: set[str] = set()
        self.waiting = 0
        self.spawned = 0
        self.idle_since = time.monotonic()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        setup = {"control": theirs.fileno(), "idle_s": IDLE_S, "avoid": sorted(_avoided)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mainspring.pipelines.forkserver", json.dumps(setup)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=root,
            start_new_session=True,  # Ctrl-C reaches the runner only, which then ends its steps in order
            env=_for_server(self.environment),
        )
        theirs.close()

    def preload(self, modules: Iterable[str]) -> None:
        """Have it import what it has not imported yet, before it forks the next step."""
        missing = [m for m in dict.fromkeys(modules) if m not in self.loaded and _NAME.fullmatch(m)]
        self.loaded.update(missing)
        while missing:
            part = [missing.pop(0)]
            size = len(part[0])
            while missing and size + len(missing[0]) < _PACKET:
                size += len(missing[0]) + 4
                part.append(missing.pop(0))
            self.control.send(json.dumps({"op": "preload", "modules": part}).encode())
            self.waiting += 1

    def receive(self) -> dict[str, object] | None:
        """The next thing it says; None when it is gone. Blocks until there is one."""
        try:
            data = self.control.recv(1 << 16)
        except ConnectionError:
            return None
        return self._heard(data) if data else None

    def is_alive(self) -> bool:
        """Whether it still listens; takes note of what it said while nobody used it."""
        try:
            while data := self.control.recv(1 << 16, socket.MSG_DONTWAIT):
                self._heard(data)
        except BlockingIOError:
            return self.process.poll() is None
        except OSError:
            pass
        return False

    def _heard(self, data: bytes) -> dict[str, object]:
        message: dict[str, object] = json.loads(data)
        if message["op"] == "loaded":
            self.waiting -= 1
            avoided = message["avoided"]
            _avoided.update(avoided if isinstance(avoided, list) else ())
        return message

    def stop(self) -> None:
        """End it and everything below it. Idempotent."""
        if self.control.fileno() < 0:
            return
        if self.waiting and not self.is_alive() and self.waiting:
            with _lock:
                _fragile.add(self.root)
        self.control.close()
        if self.process.poll() is None:
            processes.kill_tree(self.process.pid)
        self.process.wait()


def take(root: Path, modules: Iterable[str]) -> WarmServer:
    """A server for one run, to be given back; a new one if none fits. ``modules`` are what its steps are known to need."""
    stale: list[WarmServer] = []
    server: WarmServer | None = None
    with _lock:
        wanted = [] if root in _fragile else [*modules, *_learnt.get(root, ())]
        for one in list(_idle):
            # One that is about to end by itself is not taken: it could be gone when the first step starts.
            if time.monotonic() - one.idle_since > IDLE_S - 60 or not one.is_alive():
                _idle.remove(one)
                stale.append(one)
            elif server is None and one.root == root and one.environment == _environment():
                _idle.remove(one)
                server = one
    for one in stale:
        one.stop()
    server = server or WarmServer(root)
    with contextlib.suppress(OSError):  # it has just died: the first step will find that out
        server.preload(wanted)
    return server


def give_back(server: WarmServer) -> None:
    """The run is over and none of its steps is left; what was learnt of them is imported while nobody waits."""
    stale: list[WarmServer] = []
    with _lock:
        learnt = [] if server.root in _fragile else list(_learnt.get(server.root, ()))
    with contextlib.suppress(OSError):
        server.preload(learnt)
    with _lock:
        server.idle_since = time.monotonic()
        _idle.append(server)
        while len(_idle) > _MAX_IDLE:
            stale.append(_idle.pop(0))
    for one in stale:
        one.stop()


def learn(root: Path, modules: Iterable[str]) -> None:
    """Steps of the project at ``root`` imported these: the next run finds them loaded."""
    with _lock:
        known = _learnt.setdefault(root, {})
        for name in modules:
            if len(known) < _MAX_LEARNT and _NAME.fullmatch(name):
                known[name] = None


def stop_idle() -> None:
    """End every server that no run is using."""
    with _lock:
        stale, _idle[:] = list(_idle), []
    for one in stale:
        one.stop()


def _forget() -> None:
    """In a fork of this process the servers are the parent's: only their sockets must go, or they would outlive it."""
    for one in _idle:
        one.control.close()
    _idle.clear()


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in _OURS}  # passed on, not read


def _for_server(environment: dict[str, str]) -> dict[str, str]:
    return {
        # OpenMP and the BLAS libraries count the machine's cores where a container has a few.
        "OMP_NUM_THREADS": str(available_cores()),
        **environment,
        processes.COOKIE: " " * processes.ROOM,
        processes.OWNER: processes.identity(),
        # A fixed hash seed: equal inputs shall give equal bytes even through sets.
        "PYTHONHASHSEED": "0",
        # ONNX Runtime starts a collector, with threads, at import unless it is told not to.
        "ORT_DISABLE_TELEMETRY": "1",
    }


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


atexit.register(stop_idle)
os.register_at_fork(after_in_child=_forget)
