"""HTTP on one connection of the inference plane: the bounds of ``serving.connection``, and a fast path for predictions.

A prediction request that arrived whole and needs no thread is answered where it was parsed: no task, no scope, one write. That halves
the cost of an answer. All others (large or slow bodies, requests behind a slow answer, HTTP/1.0, draining) take uvicorn's own path. Both
paths use the same parser, checks, dialect and core.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from mainspring.serving import connection
from mainspring.serving.app import App, QuickTarget
from mainspring.serving.connection import BoundedProtocol, Bounds


class Protocol(BoundedProtocol):
    """One connection to :class:`App`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        serving = cast("App", config.loaded_app)
        options = serving.core.options
        bounds = Bounds(head_s=options.head_deadline_s, stall_s=options.body_deadline_s)
        super().__init__(config, server_state, app_state, _loop, bounds=bounds)
        self._serving = serving
        self._keep_alive_s = float(config.timeout_keep_alive)
        self._quick: QuickTarget | None = None
        self._body = b""

    def parsed(self) -> None:
        if self._quick is not None:
            self._leave_quick()

    def refused(self, code: str) -> None:
        self._quick = None
        self._serving.core.metrics.refuse(code)

    def begin_request(self) -> None:
        parser, cycle = self.parser, self.cycle
        target = self._serving.quick_targets.get(self.url)
        if (
            target is not None
            and parser.get_method() == b"POST"
            and (cycle is None or cycle.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and not self._serving.draining
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        ):
            self._quick, self._body = target, b""
        else:
            self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        if self._quick is not None:
            self._silent_bytes = 0
            if not self._body:
                self._body = body
                return
            self._leave_quick()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._quick is not None:
            answer = self._serving.quick(self._quick, self.headers, self._body)
            if answer is not None:
                self._quick, self._body = None, b""
                self._in_message = False
                self.server_state.total_requests += 1
                self.due = self._now() + self._keep_alive_s
                self.transport.write(answer)
                return
            self._leave_quick()
        super().on_message_complete()

    def _leave_quick(self) -> None:
        """Give up the fast path: hand the request to a task."""
        if self._quick is None:
            return
        body, self._body, self._quick = self._body, b"", None
        self._begin_cycle()
        if body:
            super().on_body(body)

    def _begin_cycle(self) -> None:
        super().begin_request()
        if self._serving.draining and self.cycle is not None:
            self.cycle.keep_alive = False


async def sweep(app: App, state: ServerState) -> None:
    """Close overdue connections and keep the Date header up to date, until cancelled."""

    def update_date() -> None:
        app.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"

    await connection.sweep(state, each=update_date)


async def drain(app: App, state: ServerState, *, within_s: float) -> None:
    """Answer requests that were sent, each with ``connection: close``; returns when no client is connected, at the latest after
    ``within_s`` seconds."""
    app.draining = True
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while state.connections and loop.time() < until:
        await asyncio.sleep(0.02)
