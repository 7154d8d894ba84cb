"""The worker process: it is confined before it reads a package, then answers on one event loop until it is asked to stop.

Started by the supervisor as ``mainspring.serving.worker PARENT SOCKET_FD CONTROL_FD SANDBOX BUNDLE`` (see ``isolation``). On stdin it
gets one line of JSON, the options (a key must not be in a command line, which others can read), later the lines ``go``, to begin to
serve, and ``stop``, when the server ends. To the supervisor it writes lines of JSON: ``loaded`` when it could serve, ``ready`` when it
does, ``leaving`` when it takes no more connections, and a heartbeat each second. On SIGTERM it answers the requests that it has taken
and ends, while another worker takes new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainspring.records.base import from_json, to_json
from mainspring.serving.model_process import start_nursery
from mainspring.serving.options import ServeOptions
from mainspring.serving.sandbox import confine, die_with_parent, limit_resources

HEARTBEAT_S = 1.0


def main(argv: list[str]) -> int:
    """Run a worker; returns its exit status."""
    parent, socket_fd, control_fd = (int(a) for a in argv[:3])
    die_with_parent(parent)
    # Ctrl-C reaches the whole process group, and the supervisor decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nursery = start_nursery(Path(argv[4]), sandbox=argv[3], close=[socket_fd, control_fd])
    line, rest = _read_first_line()
    options: ServeOptions = from_json(line, ServeOptions)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sandbox = enter(options)
    listener = socket.socket(fileno=socket_fd)
    import uvloop

    worker = Worker(options, listener, control_fd, sandbox, nursery, rest)
    uvloop.run(worker.run())
    return 0


def enter(options: ServeOptions) -> str:
    """Confine this process as a worker; returns ``landlock`` or ``none``."""
    log_folder = Path(options.bundle) / "log"
    log_folder.mkdir(exist_ok=True, mode=0o700)
    limit_resources(memory_mb=options.memory_mb)
    return confine(read=[Path(options.bundle)], write=[log_folder], mode=options.sandbox)


def _read_first_line() -> tuple[bytes, bytes]:
    """The first line of stdin, and the bytes that were read after it."""
    data = b""
    while b"\n" not in data:
        piece = os.read(0, 65536)
        if not piece:
            break
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest


class Worker:
    """The event loop of one worker, from loading to the last answer."""

    def __init__(
        self,
        options: ServeOptions,
        listener: socket.socket,
        control_fd: int,
        sandbox: str,
        nursery: socket.socket,
        commands: bytes,
    ) -> None:
        from mainspring.serving.app import App
        from mainspring.serving.bundle import Watcher
        from mainspring.serving.core import Core
        from mainspring.serving.hosting import Nursery
        from mainspring.serving.metrics import Metrics

        self._options = options
        self._listener = listener
        self._control_fd = control_fd
        self._sandbox = sandbox
        self._nursery = nursery
        self._commands = commands
        self._metrics = Metrics()
        self._core = Core(options, metrics=self._metrics)
        self._app = App(self._core, sandbox=sandbox, failure=lambda: self._watcher.failure)
        self._watcher = Watcher(
            options, metrics=self._metrics, switch=self._app.switch, nursery=Nursery(nursery, options)
        )
        self._watcher.persists = False
        self._may_serve = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._server: Any = None

    async def run(self) -> None:
        """Load the bundle, wait for ``go``, serve, drain."""
        loop = asyncio.get_running_loop()
        os.set_blocking(0, False)
        loop.add_reader(0, self._read_commands)
        loop.add_reader(self._nursery.fileno(), self._leave_without_nursery)
        self._run_commands()
        beat = loop.create_task(self._send_heartbeats())
        try:
            await asyncio.to_thread(self._watcher.start)
            # Until here SIGTERM ends this process at once: there is no request to answer.
            loop.add_signal_handler(signal.SIGTERM, lambda: self._start_drain(leave=True))
            self._report({"event": "loaded"})
            await self._may_serve.wait()
            if self._draining is None:
                await self._serve()
        finally:
            beat.cancel()
            self._watcher.stop()

    async def _serve(self) -> None:
        import uvicorn

        from mainspring.serving.bundle import LOG_FOLDER
        from mainspring.serving.log import PredictionLog
        from mainspring.serving.protocol import Protocol, sweep

        options, core, app = self._options, self._core, self._app
        log = core.log = PredictionLog(
            Path(options.bundle) / LOG_FOLDER,
            metrics=self._metrics,
            required=options.log_mode == "required",
            sync_s=options.log_sync_s,
        )
        self._watcher.persist()
        config = uvicorn.Config(
            app, http=Protocol, loop="none", lifespan="off", access_log=False, log_config=None, server_header=False,
            ws="none", proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=max(1, int(options.drain_s)), backlog=1024,
        )  # fmt: skip
        self._server = server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        ready = loop.create_task(self._announce())
        sweeping = loop.create_task(sweep(app, server.server_state))
        with contextlib.suppress(asyncio.CancelledError):
            # uvicorn's own handlers would raise the signal again at its end, before the log is closed.
            server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
            await server.serve(sockets=[self._listener])
        ready.cancel()
        sweeping.cancel()
        await core.drain(options.drain_s)
        core.close()
        log.close()

    async def _announce(self) -> None:
        while not self._server.started:
            await asyncio.sleep(0.005)
        self._report(
            {
                "event": "ready",
                "pid": os.getpid(),
                "sandbox": self._sandbox,
                "routes": self._core.table.number,
            }
        )

    async def _send_heartbeats(self) -> None:
        """Send heartbeats while predictions can be made: without them the supervisor takes this process for hung."""
        while True:
            if self._core.admission.stuck_s() < self._options.hang_s:
                self._report({"event": "beat"})
            await asyncio.sleep(HEARTBEAT_S)

    def _report(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._control_fd, to_json(message) + b"\n")

    def _read_commands(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(0, 4096)
            if not data:  # the supervisor is gone; the kernel ends this process too
                asyncio.get_running_loop().remove_reader(0)
        self._commands += data
        self._run_commands()

    def _run_commands(self) -> None:
        *lines, self._commands = self._commands.split(b"\n")
        commands: dict[bytes, Callable[[], None]] = {
            b"go": self._may_serve.set,
            b"stop": lambda: self._start_drain(leave=False),
        }
        for line in lines:
            if line in commands:
                commands[line]()

    def _leave_without_nursery(self) -> None:
        """The nursery ended, so no package can be loaded any more: leave to another worker."""
        asyncio.get_running_loop().remove_reader(self._nursery.fileno())
        logging.getLogger("mainspring.serving").error(
            "the process that loads packages ended; this worker leaves"
        )
        self._start_drain(leave=True)

    def _start_drain(self, *, leave: bool) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain(leave=leave))

    async def _drain(self, *, leave: bool) -> None:
        """Answer the requests that were sent. ``leave``: accept no new connections, because another worker does; else accept to the end."""
        from mainspring.serving.protocol import drain

        server = self._server
        self._may_serve.set()
        if server is None:
            return
        while not server.started:
            await asyncio.sleep(0.005)
        if leave:
            for listening in server.servers:
                listening.close()
            self._report({"event": "leaving"})
        await drain(self._app, server.server_state, within_s=self._options.linger_s)
        server.should_exit = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
