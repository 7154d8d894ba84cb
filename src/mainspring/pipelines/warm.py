"""Warm servers of this process: started once, used by one run after another, ended with the process.

A server is taken by one run at a time, so its socket needs no lock. It fits a run with the same root and the same
environment variables; modules that it lacks are imported on request. What steps of a project imported by themselves (inside
functions, or in libraries) is reported in their results and imported before the next run.
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
"""A server that no run has used for this many seconds ends by itself: it holds a few hundred megabytes."""

_MAX_IDLE = 2
_MAX_MODULES = 4000
_PACKET = 24_000
_NAME = re.compile(r"[\w.]{1,200}(:[\w*]{1,200})?")
_OWN_VARIABLES = frozenset({processes.COOKIE, processes.OWNER, "ORT_DISABLE_TELEMETRY"})

_lock = threading.Lock()
"""Guards the lists and sets below. Not reentrant: :meth:`WarmServer.stop` takes it, so servers are stopped after it is released."""

_idle: list[WarmServer] = []
_modules_by_root: dict[Path, dict[str, None]] = {}
_avoided: set[str] = set()
"""Packages that start threads when they are imported, as servers of this process reported."""

_fragile: set[Path] = set()
"""Roots whose server died while it imported modules: their servers preload nothing."""


class WarmServer:
    """The process, and this end of its socket. ``waiting``: how many preload requests it has not answered yet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = _shared_environment()
        self.loaded: set[str] = set()
        self.waiting = 0
        self.spawned = 0
        self.idle_since = time.monotonic()
        self.control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        setup = {"control": far_end.fileno(), "idle_s": IDLE_S, "avoid": sorted(_avoided)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mainspring.pipelines.forkserver", json.dumps(setup)],
            pass_fds=[far_end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=root,
            start_new_session=True,  # Ctrl-C reaches the runner only, which then ends its steps in order
            env=_server_environment(self.environment),
        )
        far_end.close()

    def preload(self, modules: Iterable[str]) -> None:
        """Ask it to import the modules that it lacks, before it forks the next step."""
        missing = [m for m in dict.fromkeys(modules) if m not in self.loaded and _NAME.fullmatch(m)]
        self.loaded.update(missing)
        while missing:
            part = [missing.pop(0)]  # one packet: the receiver reads at most 64 KiB of each
            size = len(part[0])
            while missing and size + len(missing[0]) < _PACKET:
                size += len(missing[0]) + 4
                part.append(missing.pop(0))
            self.control.send(json.dumps({"op": "preload", "modules": part}).encode())
            self.waiting += 1

    def receive(self) -> dict[str, object] | None:
        """Its next message; None if it has ended. Blocks until there is one."""
        try:
            data = self.control.recv(1 << 16)
        except ConnectionError:
            return None
        return self._handle_message(data) if data else None

    def is_alive(self) -> bool:
        """Whether it still runs; first handles the messages that came while no run used it."""
        try:
            while data := self.control.recv(1 << 16, socket.MSG_DONTWAIT):
                self._handle_message(data)
        except BlockingIOError:
            return self.process.poll() is None
        except OSError:
            pass
        return False

    def _handle_message(self, data: bytes) -> dict[str, object]:
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


def take_server(root: Path, modules: Iterable[str]) -> WarmServer:
    """A server for one run, to be given to :func:`return_server` afterwards; a new one if no idle one fits.

    ``modules``: what the steps of the run are known to import.
    """
    stale: list[WarmServer] = []
    server: WarmServer | None = None
    with _lock:
        wanted = [] if root in _fragile else [*modules, *_modules_by_root.get(root, ())]
        for idle in list(_idle):
            # One that is about to end by itself is not taken: it could have ended when the first step starts.
            if time.monotonic() - idle.idle_since > IDLE_S - 60 or not idle.is_alive():
                _idle.remove(idle)
                stale.append(idle)
            elif server is None and idle.root == root and idle.environment == _shared_environment():
                _idle.remove(idle)
                server = idle
    for old in stale:
        old.stop()
    server = server or WarmServer(root)
    with contextlib.suppress(OSError):  # if it has just died, starting the first step fails
        server.preload(wanted)
    return server


def return_server(server: WarmServer) -> None:
    """Keep the server for another run, after its last step has ended; it imports what its steps imported, while no run waits."""
    stale: list[WarmServer] = []
    with _lock:
        modules = [] if server.root in _fragile else list(_modules_by_root.get(server.root, ()))
    with contextlib.suppress(OSError):
        server.preload(modules)
    with _lock:
        server.idle_since = time.monotonic()
        _idle.append(server)
        while len(_idle) > _MAX_IDLE:
            stale.append(_idle.pop(0))
    for old in stale:
        old.stop()


def remember_modules(root: Path, modules: Iterable[str]) -> None:
    """Record what steps of the project at ``root`` imported, so that its server has them loaded for the next run."""
    with _lock:
        known = _modules_by_root.setdefault(root, {})
        for name in modules:
            if len(known) < _MAX_MODULES and _NAME.fullmatch(name):
                known[name] = None


def stop_idle() -> None:
    """End every server that no run is using."""
    with _lock:
        stale, _idle[:] = list(_idle), []
    for server in stale:
        server.stop()


def _close_inherited() -> None:
    """In a fork of this process: close the sockets of the parent's servers. A server ends when all copies of its socket are closed."""
    for server in _idle:
        server.control.close()
    _idle.clear()


def _shared_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in _OWN_VARIABLES}  # passed on, not read


def _server_environment(environment: dict[str, str]) -> dict[str, str]:
    return {
        # OpenMP and the BLAS libraries count the cores of the machine, of which a container may use only a few.
        "OMP_NUM_THREADS": str(available_cores()),
        **environment,
        processes.COOKIE: " " * processes.COOKIE_BYTES,
        processes.OWNER: processes.identity(),
        # A fixed hash seed: sets of text get the same order in every process, so equal inputs give equal bytes.
        "PYTHONHASHSEED": "0",
        # ONNX Runtime starts a collector, with threads, at import unless this is set.
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
os.register_at_fork(after_in_child=_close_inherited)
