"""Bounds what a client can cost on one HTTP connection, for both planes: uvicorn's httptools protocol with bounds and deadlines.

uvicorn has no deadline for a request that arrives slowly and no bound on headers, and it takes trailers for headers. Here a head has a
maximum size, number of headers and time; trailers are ignored; a body that is not read any more ends the connection; a client that does
not read its answers is disconnected; and more connections than ``Bounds.connections`` replace those that have been silent longest.
:func:`sweep` must run beside the server: it closes connections that are overdue.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 << 10
"""Most bytes of the request line and the headers together, of bytes between two pieces of a body, and of a trailer."""

MAX_HEADERS = 128
MAX_PIPELINED = 128
"""Most requests that a client may send before the answer to an earlier one; each is kept in memory."""

SWEEP_S = 0.5
LINGER_S = 1.0
"""Seconds for which a refused connection is still read, and the bytes discarded, before it is closed."""

_REASONS = {
    400: b"400 Bad Request",
    408: b"408 Request Timeout",
    431: b"431 Request Header Fields Too Large",
    503: b"503 Service Unavailable",
}
_CODES = {408: "slow_request", 400: "bad_request", 431: "headers_too_large", 503: "too_many_connections"}


@dataclass(frozen=True)
class Bounds:
    """Seconds for a head to arrive, and for a client to read an answer; most ``connections`` at once (None: no bound)."""

    head_s: float
    stall_s: float
    connections: int | None = None


class BoundedProtocol(HttpToolsProtocol):
    """One connection. ``due``: the time, by the event loop's clock, at which :meth:`expire` closes it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.bounds = bounds
        self._now = self.loop.time
        self.due = math.inf
        self.stalled = math.inf
        self.silent_since = self._now()
        self.proven = False
        """Whether the head of a request has arrived on this connection."""
        self._in_head = False
        self._in_message = False
        self._head_timed = False
        self._head_bytes = 0
        self._silent_bytes = 0
        """Bytes received since the parser's last callback: an unfinished header, which it keeps in memory."""
        self._refusal: tuple[int, str] | None = None
        self._refused = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.due = self._now() + self.bounds.head_s
        limit = self.bounds.connections
        if limit is not None and len(self.connections) > limit:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._refused:
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.parsed()  # an upgrade is not offered: it is answered as the plain request that it is too
            if self.cycle is not None:
                self.cycle.keep_alive = False  # what follows is in a protocol that is not read here
            return
        except httptools.HttpParserError:
            self._refuse(*(self._refusal or (400, "not a valid HTTP request")))
            return
        self.parsed()
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "a header or trailer is too large")
        elif self._in_head and not self._head_timed:
            self._head_timed = True
            self.due = self._now() + self.bounds.head_s
        elif self.due == math.inf and not self._in_message and self.idle:
            self.due = self._now() + self.bounds.head_s  # bytes that begin no request, such as empty lines

    def parsed(self) -> None:
        """Called when all received bytes have been parsed."""

    def pause_writing(self) -> None:
        self.stalled = self._now() + self.bounds.stall_s
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled = math.inf
        super().resume_writing()

    def expire(self, now: float) -> None:
        """Close the connection if it is overdue: no head in time, idle too long, or a client that does not read its answers."""
        if now >= self.stalled:
            self.transport.abort()
        elif now >= self.due and not self.transport.is_closing():
            if self._refused:
                self.transport.close()
            elif self.cycle is not None and not self.cycle.response_complete:
                # The next head waits for this answer, so its time does not count yet.
                self.due = now + self.bounds.head_s
            elif self._in_head:
                self._refuse(408, "the head of the request did not arrive in time")
            else:
                self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request is being received or answered."""
        return not self._in_head and (self.cycle is None or self.cycle.response_complete)

    def refused(self, code: str) -> None:
        """Called when a request is refused here, before the application has it."""

    def _make_room(self) -> None:
        """Close the connection that has been silent longest; first those on which no head of a request ever arrived."""
        others = [
            c
            for c in self.connections
            if isinstance(c, BoundedProtocol)
            and c is not self
            and (c.cycle is None or c.cycle.response_complete)
            and not c.transport.is_closing()
        ]
        if not others:
            self._refuse(503, "too many connections")
            return
        min(others, key=lambda c: (c.proven, c.silent_since)).transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error and close; earlier requests that arrived whole are still answered.

        Bytes that still arrive are discarded for a second: closing with unread bytes would reset the connection, and the client would not
        see the answer.
        """
        self._refused = True
        self.refused(_CODES[status])
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False  # the last good request is answered, then the connection closes
                self.due = math.inf
                return
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
            # Its body is broken: the application sees a disconnect, the client gets the reason.
            cycle.disconnected = True
            cycle.message_event.set()
        body = msgspec.json.encode({"error": {"code": _CODES[status], "message": message}})
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (_REASONS[status], len(body), body)
        )
        self.transport.write_eof()
        self.due = self._now() + LINGER_S

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = self._in_message = True
        self._head_timed = False
        self._head_bytes = self._silent_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_HEAD_BYTES:
            self.stop_parsing(431, "the request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) >= MAX_HEADERS:
            self.stop_parsing(431, "the headers are too many or too large")
        if self._in_head:  # a trailer says nothing: the headers have been checked
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self.due = math.inf
        self.proven = True
        codings = [v for k, v in self.headers if k == b"transfer-encoding"]
        if codings and ([c.strip().lower() for c in codings] != [b"chunked"] or self._is_old_http):
            # The parser uses the last coding and ignores the others: two readers would see two different bodies (request smuggling).
            self.stop_parsing(400, "the only transfer coding here is 'chunked'")
        self.begin_request()

    @property
    def _is_old_http(self) -> bool:
        return bool(self.parser.get_http_version() != "1.1")

    def begin_request(self) -> None:
        """Called when the head is complete: hand the request to the application."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self.stop_parsing(400, "too many requests sent ahead")
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

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        if self.idle:
            self.due = math.inf  # the rest of a body that is not read has arrived in time
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.silent_since = self._now()
        super().on_response_complete()
        if self._in_message and not self._in_head and self.idle:
            self.due = self._now() + self.bounds.head_s  # a body that is not read may not go on for ever

    def stop_parsing(self, status: int, message: str) -> None:
        """Refuse the request from within a callback of the parser."""
        self._refusal = (status, message)
        raise ValueError(message)  # the parser raises its own error for it, which data_received answers


async def sweep(state: ServerState, *, each: Callable[[], None] | None = None) -> None:
    """Close overdue connections until cancelled. ``each`` is called before each round, every :data:`SWEEP_S` seconds."""
    now = asyncio.get_running_loop().time
    while True:
        if each is not None:
            each()
        moment = now()
        for connection in list(state.connections):
            if isinstance(connection, BoundedProtocol) and (
                moment >= connection.due or moment >= connection.stalled
            ):
                connection.expire(moment)
        await asyncio.sleep(SWEEP_S)
