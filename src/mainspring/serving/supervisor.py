"""The supervisor: holds the listening socket, never loads a model, keeps one worker alive.

While a worker is being replaced, new connections wait in the socket's backlog. A worker that dies comes back after a growing
pause; one without a heartbeat is killed. SIGTERM and SIGINT drain; killing the supervisor kills the worker.
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
from mainspring.serving.options import ServeOptions, checked

_STEADY_S = 30.0
_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


def serve(bundle: Path, *, out: TextIO | None = None, **options: Any) -> int:
    """Serve ``bundle`` until SIGTERM or SIGINT; returns the exit status.

    ``options`` are the fields of :class:`ServeOptions`. When the server answers, one line of JSON goes to ``out``: ``{"event": "ready",
    "url", "host", "port", "pid", "worker", "sandbox", "routes"}``. Raises :class:`ConfigError` for unsafe options, :class:`Conflict` for a
    port in use.
    """
    try:
        chosen = msgspec.convert({"bundle": str(Path(bundle).absolute())} | options, ServeOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"not an option of the inference server: {error}") from None
    return Supervisor(checked(chosen), out=out or sys.stdout).run()


class Supervisor:
    """Runs workers one after another on one socket."""

    def __init__(self, options: ServeOptions, *, out: TextIO) -> None:
        self._out = out
        self._socket = _bind(options.host, options.port)
        self._host, self._port = self._socket.getsockname()[:2]
        self._options = msgspec.structs.replace(options, port=self._port)
        self._stop = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None
        self._announced = False
        self._wake = os.pipe()

    def run(self) -> int:
        """Supervise until told to stop. Signals are handled only if this is the main thread."""
        previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                previous[number] = signal.signal(number, lambda *_: self.stop())
        failures = 0
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                status = self._run_worker()
                if self._stop.is_set():
                    return 0 if status in {0, -int(signal.SIGTERM)} else 1
                failures = 1 if time.monotonic() - started > _STEADY_S else failures + 1
                pause = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1]
                _say(f"the worker ended with status {status}; a new one in {pause:g} s")
                select.select([self._wake[0]], [], [], pause)
        finally:
            self._socket.close()
            for number, handler in previous.items():
                signal.signal(number, handler)
            for fd in self._wake:
                os.close(fd)
        return 0

    def stop(self) -> None:
        """Drain and end; may be called from a signal handler or another thread."""
        self._stop.set()
        with contextlib.suppress(OSError):
            os.write(self._wake[1], b"x")
        worker = self._worker
        if worker is not None and worker.poll() is None:
            worker.send_signal(signal.SIGTERM)

    def _run_worker(self) -> int:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        argv = isolation.command(
            "mainspring.serving.worker", str(os.getpid()), str(self._socket.fileno()), str(writing)
        )
        try:
            worker = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                pass_fds=(self._socket.fileno(), writing),
                cwd=isolation.NEUTRAL,
                env=isolation.environment(),
            )
        finally:
            os.close(writing)
        self._worker = worker
        try:
            if worker.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.write(to_json(self._options) + b"\n")
                    worker.stdin.close()
            if self._stop.is_set():
                worker.send_signal(signal.SIGTERM)
            self._watch(worker, reading)
            return worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            os.close(reading)

    def _watch(self, worker: subprocess.Popen[bytes], reading: int) -> None:
        """Until the worker ends: hear its heartbeat, kill it when it falls silent or does not drain in time."""
        # Loading at the start may take as long as the operator allows it to.
        silent_at = time.monotonic() + self._options.load_deadline_s + self._options.hang_s
        drain_until = None
        buffer = b""
        while True:
            ready, _, _ = select.select([reading], [], [], 0.25)
            now = time.monotonic()
            if ready:
                data = os.read(reading, 65536)
                if not data:
                    return  # every end of the pipe is closed: it is gone
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    silent_at = now + self._options.hang_s
                    self._hear(line, worker)
            if self._stop.is_set() and drain_until is None:
                drain_until = now + 2 * self._options.drain_s + 5
                self._socket.close()  # only the worker decides now until when connections are taken
            if now > (drain_until or silent_at):
                _say("the worker hangs and is killed")
                worker.kill()
                return

    def _hear(self, line: bytes, worker: subprocess.Popen[bytes]) -> None:
        message = json.loads(line)
        if message.get("event") != "ready" or self._announced:
            return
        self._announced = True
        host = f"[{self._host}]" if ":" in self._host else self._host
        hello = {
            "event": "ready", "url": f"http://{host}:{self._port}", "host": self._host, "port": self._port, "pid": os.getpid(),
            "worker": worker.pid, "sandbox": message["sandbox"], "routes": message["routes"],
        }  # fmt: skip
        self._out.write(json.dumps(hello) + "\n")
        self._out.flush()


def _say(message: str) -> None:
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
