"""The worker process: confined before it looks at a package, then one event loop that answers until told to stop.

Started by the supervisor as ``python -m mainspring.serving.worker PARENT SOCKET_FD CONTROL_FD``; options come as one JSON line on stdin (a key
never stands in a command line). To the supervisor it writes lines of JSON: one ``ready``, then a heartbeat each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from mainspring.records.base import from_json, to_json
from mainspring.serving.options import ServeOptions
from mainspring.serving.sandbox import confine, die_with_parent, limit

HEARTBEAT_S = 1.0


def main(argv: list[str]) -> int:
    """Run a worker; returns its exit status."""
    parent, socket_fd, control_fd = (int(a) for a in argv)
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
    options: ServeOptions = from_json(sys.stdin.buffer.readline(), ServeOptions)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    log_folder = Path(options.bundle) / "log"
    log_folder.mkdir(exist_ok=True, mode=0o700)
    limit(memory_mb=options.memory_mb)
    sandbox = confine(read=[Path(options.bundle)], write=[log_folder], mode=options.sandbox)
    listener = socket.socket(fileno=socket_fd)
    import uvloop

    uvloop.run(_serve(options, listener, control_fd, sandbox))
    return 0


async def _serve(options: ServeOptions, listener: socket.socket, control_fd: int, sandbox: str) -> None:
    import uvicorn

    from mainspring.serving.app import App
    from mainspring.serving.bundle import LOG_FOLDER, Watcher
    from mainspring.serving.core import Core
    from mainspring.serving.log import PredictionLog
    from mainspring.serving.metrics import Metrics
    from mainspring.serving.protocol import Protocol, drain, sweep

    metrics = Metrics()
    log = PredictionLog(
        Path(options.bundle) / LOG_FOLDER,
        metrics=metrics,
        required=options.log_mode == "required",
        sync_s=options.log_sync_s,
    )
    core = Core(options, metrics=metrics, log=log)
    app = App(core, sandbox=sandbox, failure=lambda: watcher.failure)
    watcher = Watcher(options, metrics=metrics, switch=app.switch)
    await asyncio.to_thread(watcher.start)
    config = uvicorn.Config(
        app, http=Protocol, loop="none", lifespan="off", access_log=False, log_config=None, server_header=False,
        ws="none", proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=max(1, int(options.drain_s)), backlog=1024,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    loop = asyncio.get_running_loop()

    stopping: set[asyncio.Task[None]] = set()

    async def end() -> None:
        await drain(app, server.server_state, within_s=options.linger_s)
        server.should_exit = True

    def stop() -> None:
        if not stopping:
            stopping.add(loop.create_task(end()))

    beat = loop.create_task(
        _heartbeat(
            app,
            server,
            control_fd,
            {"event": "ready", "pid": os.getpid(), "sandbox": sandbox, "routes": core.table.number},
        )
    )
    sweeping = loop.create_task(sweep(app, server.server_state))
    with contextlib.suppress(asyncio.CancelledError):
        # uvicorn's own handlers would raise the signal again when it is done; these let the log be closed first.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        loop.add_signal_handler(signal.SIGTERM, stop)
        await server.serve(sockets=[listener])
    beat.cancel()
    sweeping.cancel()
    watcher.stop()
    await core.drain(options.drain_s)
    core.close()
    log.close()


async def _heartbeat(app: Any, server: Any, control_fd: int, hello: dict[str, Any]) -> None:
    """Say ``ready`` when the server listens, then beat while predictions can be made: silence means hung."""
    while not server.started:
        await asyncio.sleep(0.005)
    message = hello
    while True:
        if app.core.admission.stuck_s() < app.core.options.hang_s:
            with contextlib.suppress(BlockingIOError):
                os.write(control_fd, to_json(message) + b"\n")
        message = {"event": "beat"}
        await asyncio.sleep(HEARTBEAT_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
