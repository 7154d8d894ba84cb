"""Headers, hosts, bodies and answers in plain ASGI: a web framework takes as long as the prediction itself."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from mainspring.errors import (
    BadRequest,
    ForeignOrigin,
    MainspringError,
    MethodNotAllowed,
    Overloaded,
    SlowRequest,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from mainspring.serving.options import LOOPBACK_HOSTS, ServeOptions, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]
RawHeaders = list[tuple[bytes, bytes]]

SECURITY: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
JSON = b"application/json"
METRICS_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_SECURITY_LINES = b"".join(b"%b: %b\r\n" % header for header in SECURITY)
JSON_LINES = b"content-type: %b\r\n%b" % (JSON, _SECURITY_LINES)
"""The fixed header lines of a JSON response, for answers that :meth:`App.quick` makes."""
_ONCE = frozenset(
    {b"host", b"content-length", b"content-type", b"content-encoding", b"authorization", b"origin"}
)

_PORTS = {b"http": b"80", b"https": b"443"}
"""The default port of an origin, by its scheme."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole response: status, body, header fields beside the usual ones, media type of the body."""

    status: int
    body: bytes
    fields: Sequence[tuple[bytes, bytes]] = ()
    media: bytes = JSON

    def with_fields(self, *fields: tuple[bytes, bytes]) -> Reply:
        """The same reply with further header fields."""
        return Reply(self.status, self.body, [*self.fields, *fields], self.media)


class Disconnected(Exception):
    """The client disconnected before its body was complete."""


class Gate:
    """Checks Host, Origin and the API key, before the body is read."""

    def __init__(self, options: ServeOptions) -> None:
        self._local = is_loopback(options.host)
        self._hosts = frozenset(h.encode() for h in LOOPBACK_HOSTS | {h.lower() for h in options.hosts})
        # As most clients write it: one lookup instead of parsing the header.
        self._usual = self._hosts | {h + b":%d" % options.port for h in self._hosts}
        self._key = options.api_key.encode() if options.auth == "key" and options.api_key else None

    def check(self, raw: RawHeaders, headers: Headers, *, key: bool = True) -> None:
        """Raise :class:`BadRequest`, :class:`ForeignOrigin` or :class:`Unauthenticated` for a request that may not pass.

        On loopback, Host must be one of the allowed names exactly, with any port: a name that an attacker's DNS resolves to this machine
        is refused (DNS rebinding).
        """
        if len(headers) != len(raw):
            _check_repeated(raw)
        host = headers.get(b"host")
        if host is None:
            raise BadRequest("the request has no Host header")
        if self._local and host not in self._usual and _host_name(host) not in self._hosts:
            raise ForeignOrigin(
                "this host name is not served here",
                value=host.decode("latin-1"),
                next_step="Use localhost, or start 'mainspring serve --allow-host NAME'.",
            )
        if b"origin" in headers or b"sec-fetch-site" in headers:
            self._check_origin(headers)
        if key and self._key is not None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._key):
                raise Unauthenticated(
                    "an API key is needed", next_step="Send the header 'Authorization: Bearer <key>'."
                )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get(b"origin")
        if origin is not None and not self._same_origin(origin, headers[b"host"]):
            raise ForeignOrigin(
                "a page of another origin may not call this server", value=origin.decode("latin-1")
            )
        if headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
            raise ForeignOrigin("a page of another site may not call this server")

    def _same_origin(self, origin: bytes, host: bytes) -> bool:
        """Whether scheme, host and port are those of the request's own Host (RFC 6454): another port of this machine is another origin.

        This server speaks HTTP; an origin with https comes through a proxy, which sends the Host that the browser sees.
        """
        scheme, _, rest = origin.partition(b"://")
        if scheme not in _PORTS or _host_name(rest) not in self._hosts:
            return False
        return (_host_name(rest), _host_port(rest) or _PORTS[scheme]) == (
            _host_name(host),
            _host_port(host) or _PORTS[scheme],
        )


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise BadRequest("a header is there twice", value=name.decode("latin-1"))
        seen.add(name)


def _host_name(host: bytes) -> bytes:
    """The host without port: ``[::1]:80`` → ``[::1]``."""
    if host.startswith(b"["):
        inside, bracket, _ = host.partition(b"]")
        return (inside + bracket).lower()
    return host.partition(b":")[0].lower()


def _host_port(host: bytes) -> bytes:
    """``[::1]:80`` → ``80``, empty without one."""
    return host.rpartition(b"]")[2].partition(b":")[2]


class Bodies:
    """Reads bodies within bounds: bytes of one body, bytes of all that are being received, and time."""

    def __init__(self, options: ServeOptions) -> None:
        self._max_body = options.max_body
        self._max_inflight = options.max_inflight_bytes
        self._deadline_s = options.body_deadline_s
        self.inflight = 0

    async def read(self, headers: Headers, receive: Receive, *, media: tuple[bytes, ...]) -> bytes:
        """The whole body. Raises the errors of :meth:`check` before reading, :class:`SlowRequest`, :class:`Overloaded`, and
        :class:`Disconnected` if the client left."""
        self.check(headers, media)
        message = await receive() if b"content-length" in headers else None
        if message is not None and not message.get("more_body") and message["type"] == "http.request":
            body: bytes = message.get("body", b"")
            if len(body) > self._max_body:
                raise self._too_large(len(body))
            return body
        try:
            return await asyncio.wait_for(self._read_rest(message, receive), self._deadline_s)
        except TimeoutError:
            raise SlowRequest("the body did not arrive in time", value=f"{self._deadline_s:g} s") from None

    def check(self, headers: Headers, media: tuple[bytes, ...]) -> None:
        """Check the body's headers. Raises :class:`TooLarge`, :class:`UnsupportedMedia` (not one of ``media``) or :class:`BadRequest`."""
        length = headers.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise BadRequest("not a content length", value=length.decode("latin-1"))
            if len(length) > 18 or int(length) > self._max_body:
                raise self._too_large(length.decode())
        kind = headers.get(b"content-type")
        if kind is not None and kind not in media and kind.partition(b";")[0].strip().lower() not in media:
            raise UnsupportedMedia(
                "bodies of this media type are not taken here",
                value=kind.decode("latin-1"),
                next_step=f"Send 'Content-Type: {media[0].decode()}'.",
            )
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMedia(
                "compressed bodies are not taken", value=headers[b"content-encoding"].decode("latin-1")
            )

    async def _read_rest(self, message: Message | None, receive: Receive) -> bytes:
        body = bytearray()
        try:
            while True:
                if message is None:
                    message = await receive()
                if message["type"] != "http.request":
                    raise Disconnected
                chunk = message.get("body", b"")
                self.inflight += len(chunk)
                body += chunk
                if len(body) > self._max_body:
                    raise self._too_large(f"more than {self._max_body}")
                if self.inflight > self._max_inflight:
                    raise Overloaded("too many bodies are in flight", next_step="Try again after a second.")
                if not message.get("more_body"):
                    return bytes(body)
                message = None
        finally:
            self.inflight -= len(body)

    def _too_large(self, size: object) -> TooLarge:
        return TooLarge(
            "the body is too large", value=size, next_step=f"Send at most {self._max_body} bytes."
        )


async def send_reply(send: Send, reply: Reply) -> None:
    """Send ``reply`` through ASGI."""
    headers = [(b"content-type", reply.media), *SECURITY, (b"content-length", b"%d" % len(reply.body))]
    headers += reply.fields
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def encode_response(reply: Reply, date: bytes) -> bytes:
    """``reply`` as the bytes of an HTTP/1.1 response; ``date``: the Date header line."""
    lines = b"".join([b"%b: %b\r\n" % header for header in reply.fields])
    phrase = HTTPStatus(reply.status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        reply.status, phrase, date, reply.media, _SECURITY_LINES, lines, len(reply.body), reply.body,
    )  # fmt: skip


def printable(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot encode, replaced by ``?``."""
    return text.encode("utf-8", "replace").decode()


def extra_headers(error: MainspringError) -> list[tuple[bytes, bytes]]:
    """The header fields that an error adds: when to retry, how to authenticate, which methods are allowed, and ``connection: close`` where
    the body was not read."""
    extra: list[tuple[bytes, bytes]] = []
    if error.status == 503:
        extra.append((b"retry-after", b"1"))
    if isinstance(error, Unauthenticated):
        extra.append((b"www-authenticate", b'Bearer realm="mainspring"'))
    if isinstance(error, (TooLarge, SlowRequest)):
        extra.append((b"connection", b"close"))
    if isinstance(error, MethodNotAllowed):
        extra.append((b"allow", (error.place or "POST").encode()))
    return extra
