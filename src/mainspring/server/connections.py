"""Limits on the control plane's connections before a caller is authenticated: the bounds of ``serving.connection``.

:func:`control_server` is the one way to run the application, in ``mainspring up`` and in tests.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.config import Config
from uvicorn.server import ServerState

from mainspring.server.gate import App
from mainspring.serving.connection import BoundedProtocol, Bounds, sweep


@dataclass(frozen=True)
class Limits:
    """Seconds for a head to arrive, for a client to take in an answer, and between two requests; connections at once."""

    head_s: float = 10.0
    stall_s: float = 60.0
    keep_alive_s: float = 30.0
    connections: int = 1000


class ControlServer(uvicorn.Server):
    """uvicorn, with a task that closes overdue connections."""

    _sweeping: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweeping = asyncio.create_task(sweep(self.server_state))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown(sockets)
        finally:
            if self._sweeping is not None:
                self._sweeping.cancel()


def control_config(app: App, limits: Limits | None = None) -> Config:
    """How uvicorn runs ``app``: no WebSocket, no banner, one parser, and never more connections than half of the open files."""
    limits = limits or Limits()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bounds = Bounds(
        head_s=limits.head_s, stall_s=limits.stall_s, connections=max(1, min(limits.connections, files // 2))
    )

    class Protocol(BoundedProtocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop, bounds=bounds)

    return Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, int(limits.keep_alive_s)),
        timeout_graceful_shutdown=10,
    )
