"""The worker process: confined before it looks at a package, then one event loop that answers until told to stop.

Started by the supervisor as ``mainspring.serving.worker PARENT SOCKET_FD CONTROL_FD SANDBOX BUNDLE`` (see ``isolation``). On stdin comes one line of JSON,
the options (a key never stands in a command line), later ``go``: begin to serve, and ``stop``: the server ends. To the supervisor it
writes lines of JSON: ``loaded`` when it could serve, ``ready`` when it does, ``leaving`` when it takes no more connections, and a heartbeat
each second. SIGTERM makes it leave: it answers what it has taken, while another worker takes what comes.
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
from mainspring.serving.sandbox import confine, die_with_parent, limit

HEARTBEAT_S = 1.0


def main(argv: list[str]) -> int:
    """Run a worker; returns its exit status."""
    parent, socket_fd, control_fd = (int(a) for a in argv[:3])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
    nursery = start_nursery(Path(argv[4]), sandbox=argv[3], close=[socket_fd, control_fd])
    line, rest = _first_line()
    options: ServeOptions = from_json(line, ServeOptions)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sandbox = enter(options)
    listener = socket.socket(fileno=socket_fd)
    import uvloop

    worker = Worker(options, listener, control_fd, sandbox, nursery, rest)
    uvloop.run(worker.run())
    return 0


def enter(options: ServeOptions) -> str:
    """Confine this process as a worker is; returns ``landlock`` or ``none``."""
    log_folder = Path(options.bundle) / "log"
    log_folder.mkdir(exist_ok=True, mode=0o700)
    limit(memory_mb=options.memory_mb)
    return confine(read=[Path(options.bundle)], write=[log_folder], mode=options.sandbox)


def _first_line() -> tuple[bytes, bytes]:
    """The first line of stdin and what came behind it."""
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
        self._go = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._server: Any = None

    async def run(self) -> None:
        """Load, wait until told to, serve, drain."""
        loop = asyncio.get_running_loop()
        os.set_blocking(0, False)
        loop.add_reader(0, self._command)
        loop.add_reader(self._nursery.fileno(), self._orphaned)
        self._obey()
        beat = loop.create_task(self._beat())
        try:
            await asyncio.to_thread(
                self._watcher.start
            )  # SIGTERM ends this process at once: there is nothing to answer
            loop.add_signal_handler(signal.SIGTERM, lambda: self._end(leave=True))
            self._say({"event": "loaded"})
            await self._go.wait()
            if self._ending is None:
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
            # uvicorn's own handlers would raise the signal again when it is done; ours lets the log be closed first.
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
        self._say(
            {
                "event": "ready",
                "pid": os.getpid(),
                "sandbox": self._sandbox,
                "routes": self._core.table.number,
            }
        )

    async def _beat(self) -> None:
        """Beat while predictions can be made: silence means hung."""
        while True:
            if self._core.admission.stuck_s() < self._options.hang_s:
                self._say({"event": "beat"})
            await asyncio.sleep(HEARTBEAT_S)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._control_fd, to_json(message) + b"\n")

    def _command(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(0, 4096)
            if not data:  # the supervisor is gone, and we soon
                asyncio.get_running_loop().remove_reader(0)
        self._commands += data
        self._obey()

    def _obey(self) -> None:
        *lines, self._commands = self._commands.split(b"\n")
        todo: dict[bytes, Callable[[], None]] = {b"go": self._go.set, b"stop": lambda: self._end(leave=False)}
        for line in lines:
            if line in todo:
                todo[line]()

    def _orphaned(self) -> None:
        """The nursery ended: no package can be loaded any more. Another worker takes over."""
        asyncio.get_running_loop().remove_reader(self._nursery.fileno())
        logging.getLogger("mainspring.serving").error(
            "the process that loads packages ended; this worker leaves"
        )
        self._end(leave=True)

    def _end(self, *, leave: bool) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain(leave=leave))

    async def _drain(self, *, leave: bool) -> None:
        """Answer what was sent. ``leave``: take no new connections, since another worker does; else take them to the end."""
        from mainspring.serving.protocol import drain

        server = self._server
        self._go.set()
        if server is None:
            return
        while not server.started:
            await asyncio.sleep(0.005)
        if leave:
            for listening in server.servers:
                listening.close()
            self._say({"event": "leaving"})
        await drain(self._app, server.server_state, within_s=self._options.linger_s)
        server.should_exit = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
