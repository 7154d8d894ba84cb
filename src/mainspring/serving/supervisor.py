"""The supervisor: holds the listening socket, never loads a model, keeps one worker serving and one spare worker loaded.

A worker that dies, hangs or leaves is replaced by the spare at once; connections wait in the socket's backlog for some milliseconds.
Without a spare, or before it is loaded, a new worker is started after a growing pause. A worker without a heartbeat is killed. SIGTERM
and SIGINT drain; killing the supervisor kills the workers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec

from mainspring.errors import Conflict, InvalidInput
from mainspring.records.base import to_json
from mainspring.serving import isolation
from mainspring.serving.options import ServeOptions, check_options

_STEADY_S = 30.0
_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_POLL_S = 0.25


def serve(bundle: Path, *, out: TextIO | None = None, lifeline: int | None = None, **options: Any) -> int:
    """Serve ``bundle`` until SIGTERM or SIGINT, or until the other end of the descriptor ``lifeline``, which the starting process holds,
    is closed; returns the exit status.

    ``options`` are the fields of :class:`ServeOptions`. When the server answers, one line of JSON goes to ``out``: ``{"event": "ready",
    "url", "host", "port", "pid", "worker", "sandbox", "routes"}``. Raises :class:`ConfigError` for unsafe options, :class:`Conflict` for a
    port in use.
    """
    try:
        chosen = msgspec.convert({"bundle": str(Path(bundle).absolute())} | options, ServeOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"not an option of the inference server: {error}") from None
    return Supervisor(check_options(chosen), out=out or sys.stdout, lifeline=lifeline).run()


class _Child:
    """One worker process, and the messages that it has sent."""

    def __init__(self, options: ServeOptions, listener: socket.socket) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(writing, False)
        argv = isolation.command(
            "mainspring.serving.worker",
            str(os.getpid()),
            str(listener.fileno()),
            str(writing),
            options.sandbox,
            options.bundle,
        )
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(), writing),
                cwd=isolation.NEUTRAL,
                env=isolation.environment(),
            )
        finally:
            os.close(writing)
        self.started = time.monotonic()
        self.hang_s = options.hang_s
        # While it loads, no heartbeat is due: it may take as long as the operator allows.
        self.silent_at = self.started + options.load_deadline_s + options.hang_s
        self.ready = False
        self._buffer = b""
        self.send(to_json(options))

    def send(self, line: bytes) -> None:
        """Write a line to its stdin."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.write(line + b"\n")
                self.process.stdin.flush()

    def read_messages(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None if the process is gone."""
        data = os.read(self.reading, 65536)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.silent_at = max(self.silent_at, time.monotonic() + self.hang_s)
        return [json.loads(line) for line in lines]

    def end(self) -> int:
        """Kill it if it still runs; returns its exit status."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        os.close(self.reading)
        return self.process.wait()


class Supervisor:
    """Starts workers and keeps one of them serving."""

    def __init__(self, options: ServeOptions, *, out: TextIO, lifeline: int | None = None) -> None:
        self._out = out
        self._lifeline = lifeline
        self._socket = _bind(options.host, options.port)
        self._host, self._port = self._socket.getsockname()[:2]
        self._options = msgspec.structs.replace(options, port=self._port)
        self._stop = threading.Event()
        self._serving: _Child | None = None
        self._spare: _Child | None = None
        self._leaving: list[_Child] = []
        self._failures = 0
        self._not_before = 0.0
        self._drain_until: float | None = None
        self._announced = False
        self._wake = os.pipe()

    def run(self) -> int:
        """Supervise until :meth:`stop`, a signal or the end of the lifeline; returns the exit status. Signals are handled only in the main thread."""
        previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, lambda *_: self.stop())
        status = 0
        try:
            while not self._stop.is_set() or self._children():
                if self._stop.is_set():
                    self._begin_drain()
                else:
                    self._start_workers()
                status = self._listen(status)
        finally:
            for child in self._children():
                child.end()
            self._socket.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
            for fd in self._wake:
                os.close(fd)
        return status

    def stop(self) -> None:
        """Drain and end; may be called from a signal handler or another thread."""
        self._stop.set()
        with contextlib.suppress(OSError):
            os.write(self._wake[1], b"x")

    def _children(self) -> list[_Child]:
        return [c for c in (self._serving, self._spare, *self._leaving) if c is not None]

    def _start_workers(self) -> None:
        """Start workers until one serves and, with ``spare``, another is loaded."""
        if self._serving is None and self._spare is not None:
            self._serving, self._spare = self._spare, None
            self._serving.send(b"go")
        if time.monotonic() < self._not_before:
            return
        if self._serving is None:
            self._serving = _Child(self._options, self._socket)
            self._serving.send(b"go")
        elif self._spare is None and self._options.spare and self._serving.ready:
            self._spare = _Child(self._options, self._socket)

    def _begin_drain(self) -> None:
        """Have the serving worker answer the requests of its last second; end the others, which have no request to finish."""
        if self._drain_until is not None:
            return
        self._drain_until = time.monotonic() + 2 * self._options.drain_s + 5
        if self._serving is not None:
            if self._serving.ready:
                self._serving.send(b"stop")
            else:
                self._serving.process.terminate()
        if self._spare is not None:
            self._spare.process.kill()
        self._socket.close()  # now the worker alone decides how long connections are accepted

    def _listen(self, status: int) -> int:
        """Wait for a message or for the end of a process; returns the exit status so far."""
        children = {child.reading: child for child in self._children()}
        lifeline = [] if self._lifeline is None else [self._lifeline]
        ready, _, _ = select.select([self._wake[0], *lifeline, *children], [], [], _POLL_S)
        if self._lifeline in ready and not os.read(self._lifeline or 0, 4096):
            self._lifeline = None
            self._stop.set()  # the process that started this one is gone, however it ended
        if self._wake[0] in ready:
            os.read(self._wake[0], 4096)
        for fd in ready:
            child = children.get(fd)
            if child is None:
                continue
            messages = child.read_messages()
            if messages is None:
                status = self._remove_ended(child, status)
                continue
            for message in messages:
                self._handle_message(message, child)
        now = time.monotonic()
        for child in self._children():
            if now > (child.silent_at if self._drain_until is None else self._drain_until):
                _log("a worker hangs and is killed")
                child.process.kill()
                child.silent_at = now + self._options.hang_s
                self._drain_until = self._drain_until and now + self._options.hang_s
        return status

    def _remove_ended(self, child: _Child, status: int) -> int:
        ended = child.end()
        if self._stop.is_set():
            if child is self._serving and ended not in {0, -int(signal.SIGTERM)}:
                status = 1
        elif child not in self._leaving:
            self._failures = 1 if time.monotonic() - child.started > _STEADY_S else self._failures + 1
            pause = _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1]
            self._not_before = time.monotonic() + pause
            what = "the spare worker" if child is self._spare else "the worker"
            _log(f"{what} ended with status {ended}; a new one in {pause:g} s")
        self._forget(child)
        return status

    def _forget(self, child: _Child) -> None:
        if child is self._serving:
            self._serving = None
        elif child is self._spare:
            self._spare = None
        else:
            self._leaving.remove(child)

    def _handle_message(self, message: dict[str, Any], child: _Child) -> None:
        if message["event"] == "leaving" and not self._stop.is_set() and child is self._serving:
            self._serving = None
            self._leaving.append(child)
            child.silent_at = time.monotonic() + 2 * self._options.drain_s + 5
        elif message["event"] == "ready":
            child.ready = True
            self._announce(message, child)

    def _announce(self, message: dict[str, Any], child: _Child) -> None:
        if self._announced:
            return
        self._announced = True
        host = f"[{self._host}]" if ":" in self._host else self._host
        announcement = {
            "event": "ready", "url": f"http://{host}:{self._port}", "host": self._host, "port": self._port, "pid": os.getpid(),
            "worker": child.process.pid, "sandbox": message["sandbox"], "routes": message["routes"],
        }  # fmt: skip
        self._out.write(json.dumps(announcement) + "\n")
        self._out.flush()


def _log(message: str) -> None:
    sys.stderr.write(f"mainspring serving: {message}\n")
    sys.stderr.flush()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                "the port is in use",
                value=port,
                place=host,
                next_step="Stop the other server, or choose another --port (0: any free one).",
            ) from None
        raise InvalidInput(
            f"cannot listen: {error.strerror}",
            value=f"{host}:{port}",
            next_step="Use an address of this machine.",
        ) from None
    return listener
