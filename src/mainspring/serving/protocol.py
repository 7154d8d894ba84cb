"""HTTP on one connection: uvicorn's httptools protocol with deadlines, bounds on heads, and a short way for predictions.

uvicorn has no deadline for a request that trickles in and no bound on headers; :meth:`Protocol.expire` and ``_refuse`` add them.
A prediction that arrived whole and needs no thread is answered where it was parsed: no task, no scope, one write. That is
half of the cost of an answer. Everything else (large or slow bodies, pipelining behind a slow answer, HTTP/1.0, draining) takes
uvicorn's own way. Both ways use the same parser, gate, codec and core.
"""

from __future__ import annotations

import asyncio
import math
from email.utils import formatdate
from typing import Any, cast

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mainspring.serving.app import App

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together, and what may come between two pieces of a body (a trailer)."""

MAX_HEADERS = 128
MAX_PIPELINED = 128
"""Requests sent ahead of an answer that takes uvicorn's way; each is kept in memory."""

SWEEP_S = 0.5
_LINGER_S = 1.0

_REASONS = {408: b"408 Request Timeout", 400: b"400 Bad Request", 431: b"431 Request Header Fields Too Large"}
_CODES = {408: "slow_request", 400: "bad_request", 431: "headers_too_large"}


class Protocol(HttpToolsProtocol):
    """One connection to :class:`App`. ``due``: the loop's time at which it is closed unless something happens before."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._serving = cast("App", config.loaded_app)
        self._now = self.loop.time
        self._keep_alive_s = float(config.timeout_keep_alive)
        self._head_s = self._serving.core.options.head_deadline_s
        self._stall_s = self._serving.core.options.body_deadline_s
        self.due = math.inf
        self.stalled = math.inf
        self._in_head = False
        self._head_timed = False
        self._head_bytes = 0
        self._silent_bytes = 0
        """Received since the parser last said something: an unfinished header, which it keeps in memory."""
        self._quick: str | None = None
        self._body = b""
        self._refusal: tuple[int, str] | None = None
        self._refused = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.due = self._now() + self._head_s

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._refused:
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._leave_quick()  # an upgrade is not offered: it is answered as the plain request it also is
            return
        except httptools.HttpParserError:
            self._quick = None
            self._refuse(*(self._refusal or (400, "not a valid HTTP request")))
            return
        if self._quick is not None:
            self._leave_quick()
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "a header or trailer is too large")
        elif self._in_head and not self._head_timed:
            self._head_timed = True
            self.due = self._now() + self._head_s

    def pause_writing(self) -> None:
        self.stalled = self._now() + self._stall_s
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled = math.inf
        super().resume_writing()

    def expire(self, now: float) -> None:
        """Close what is overdue: no head in time, idle too long, or a client that does not read its answers."""
        if now >= self.stalled:
            self.transport.abort()
        elif now >= self.due and not self.transport.is_closing():
            if self.cycle is not None and not self.cycle.response_complete:
                self.due = now + self._head_s  # the next head waits for us, not we for it
            elif self._in_head and not self._refused:
                self._refuse(408, "the head of the request did not arrive in time")
            else:
                self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request is being received or answered."""
        return not self._in_head and (self.cycle is None or self.cycle.response_complete)

    def _refuse(self, status: int, message: str) -> None:
        """Answer outside of any request and close; silently, if another answer is under way.

        What still comes is thrown away for a second: closing on unread bytes would reset the connection, and the client would
        not see the answer.
        """
        self._refused = True
        self._serving.core.metrics.refuse(_CODES[status])
        if self.cycle is None or self.cycle.response_complete:
            body = msgspec.json.encode({"error": {"code": _CODES[status], "message": message}})
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (_REASONS[status], len(body), body)
            )
            self.transport.write_eof()
            self.due = self._now() + _LINGER_S
        else:
            self.transport.close()

    # What the parser says

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._head_timed = False
        self._head_bytes = self._silent_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_HEAD_BYTES:
            self._stop_parsing(431, "the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self._stop_parsing(431, "the headers are too many or too large")
        if self._in_head:  # a trailer says nothing that may be believed: the gate has been passed
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self.due = math.inf
        parser, cycle = self.parser, self.cycle
        name = self._serving.fast.get(self.url)
        if (
            name is not None
            and parser.get_method() == b"POST"
            and (cycle is None or cycle.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and not self._serving.draining
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and not parser.should_upgrade()
        ):
            self._quick, self._body = name, b""
        else:
            self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        if self._quick is not None:
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
                self.server_state.total_requests += 1
                self.due = self._now() + self._keep_alive_s
                self.transport.write(answer)
                return
            self._leave_quick()
        super().on_message_complete()

    def _leave_quick(self) -> None:
        """Hand the request that was to be answered here to a task after all."""
        if self._quick is None:
            return
        body, self._body, self._quick = self._body, b"", None
        self._begin_cycle()
        if body:
            super().on_body(body)

    def _begin_cycle(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parsing(400, "too many requests sent ahead")
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state,
        }  # type: ignore[typeddict-item]
        super().on_headers_complete()
        if self._serving.draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def _stop_parsing(self, status: int, message: str) -> None:
        self._refusal = (status, message)
        raise ValueError(message)  # the parser turns it into an error of its own, which data_received answers


async def sweep(app: App, state: ServerState) -> None:
    """Close overdue connections and keep the Date header, until cancelled."""
    now = asyncio.get_running_loop().time
    while True:
        app.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        moment = now()
        for connection in list(state.connections):
            if isinstance(connection, Protocol) and (
                moment >= connection.due or moment >= connection.stalled
            ):
                connection.expire(moment)
        await asyncio.sleep(SWEEP_S)


async def drain(app: App, state: ServerState, *, within_s: float) -> None:
    """Answer what was sent: every answer now says ``connection: close``; returns when nobody is connected, at the latest
    after ``within_s``."""
    app.draining = True
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while state.connections and loop.time() < until:
        await asyncio.sleep(0.02)
