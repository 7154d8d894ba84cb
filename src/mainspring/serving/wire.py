"""The ASGI edge: headers, hosts, bodies and answers. Raw ASGI: a framework costs as much as the prediction itself."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
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
JSON_TYPE = (b"content-type", b"application/json")
TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_JSON_HEADERS = [JSON_TYPE, *SECURITY]
JSON_LINES = b"".join(b"%b: %b\r\n" % header for header in _JSON_HEADERS)
"""The same as bytes, for answers written by the protocol itself."""
_ONCE = frozenset(
    {b"host", b"content-length", b"content-type", b"content-encoding", b"authorization", b"origin"}
)

_PORTS = {b"http": b"80", b"https": b"443"}
"""The port of an origin that names none."""


class Disconnected(Exception):
    """The client left before its body was complete."""


class Gate:
    """Host, Origin and key: passed before a body is read."""

    def __init__(self, options: ServeOptions) -> None:
        self._local = is_loopback(options.host)
        self._hosts = frozenset(h.encode() for h in LOOPBACK_HOSTS | {h.lower() for h in options.hosts})
        # Spelt as most clients do: one look-up instead of taking the header apart.
        self._usual = self._hosts | {h + b":%d" % options.port for h in self._hosts}
        self._key = options.api_key.encode() if options.auth == "key" and options.api_key else None

    def check(self, raw: RawHeaders, headers: Headers, *, key: bool = True) -> None:
        """Raises :class:`BadRequest`, :class:`ForeignOrigin` or :class:`Unauthenticated`.

        On loopback Host must be one of ours, exactly, whatever the port: a name that an attacker's DNS points here is refused.
        """
        if len(headers) != len(raw):
            _check_repeated(raw)
        host = headers.get(b"host")
        if host is None:
            raise BadRequest("the request has no Host header")
        if self._local and host not in self._usual and _name(host) not in self._hosts:
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
        """Scheme, host and port as in the request's own Host (RFC 6454): a page on another port of this machine is another site.

        We speak HTTP; https in front of us is a proxy's, which then sends the Host that the browser sees.
        """
        scheme, _, rest = origin.partition(b"://")
        if scheme not in _PORTS or _name(rest) not in self._hosts:
            return False
        return (_name(rest), _port(rest) or _PORTS[scheme]) == (_name(host), _port(host) or _PORTS[scheme])


def _check_repeated(headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise BadRequest("a header is there twice", value=name.decode("latin-1"))
        seen.add(name)


def _name(host: bytes) -> bytes:
    """The host without port: ``[::1]:80`` → ``[::1]``."""
    if host.startswith(b"["):
        inside, bracket, _ = host.partition(b"]")
        return (inside + bracket).lower()
    return host.partition(b":")[0].lower()


def _port(host: bytes) -> bytes:
    """``[::1]:80`` → ``80``, empty without one."""
    return host.rpartition(b"]")[2].partition(b":")[2]


class Bodies:
    """Reads bodies within bounds: of one, of all in flight together, and of time."""

    def __init__(self, options: ServeOptions) -> None:
        self._max_body = options.max_body
        self._max_inflight = options.max_inflight_bytes
        self._deadline_s = options.body_deadline_s
        self.inflight = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises 413 before buffering, 415, 408 or 503; :class:`Disconnected` if the client left."""
        self.check(headers)
        message = await receive() if b"content-length" in headers else None
        if message is not None and not message.get("more_body") and message["type"] == "http.request":
            body: bytes = message.get("body", b"")
            if len(body) > self._max_body:
                raise self._too_large(len(body))
            return body
        try:
            return await asyncio.wait_for(self._rest(message, receive), self._deadline_s)
        except TimeoutError:
            raise SlowRequest("the body did not arrive in time", value=f"{self._deadline_s:g} s") from None

    def check(self, headers: Headers) -> None:
        """What the headers say of the body; raises 413, 415 or 400."""
        length = headers.get(b"content-length")
        if length is not None:
            if not length.isdigit():
                raise BadRequest("not a content length", value=length.decode("latin-1"))
            if len(length) > 18 or int(length) > self._max_body:
                raise self._too_large(length.decode())
        kind = headers.get(b"content-type")
        if (
            kind is not None
            and kind != b"application/json"
            and kind.partition(b";")[0].strip().lower() != b"application/json"
        ):
            raise UnsupportedMedia(
                "the body must be JSON",
                value=kind.decode("latin-1"),
                next_step="Send 'Content-Type: application/json'.",
            )
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMedia(
                "compressed bodies are not taken", value=headers[b"content-encoding"].decode("latin-1")
            )

    async def _rest(self, message: Message | None, receive: Receive) -> bytes:
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


async def answer(
    send: Send, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a JSON response."""
    headers = [*_JSON_HEADERS, (b"content-length", b"%d" % len(body))]
    if extra:
        headers += extra
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_text(send: Send, body: bytes) -> None:
    """Send the metrics exposition."""
    headers = [TEXT_TYPE, *SECURITY, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def raw_answer(status: int, date: bytes, body: bytes, extra: list[tuple[bytes, bytes]]) -> bytes:
    """A whole JSON response as it goes over the wire."""
    lines = b"".join([b"%b: %b\r\n" % header for header in extra])
    phrase = HTTPStatus(status).phrase.encode()
    return b"HTTP/1.1 %d %b\r\n%b%b%bcontent-length: %d\r\n\r\n%b" % (
        status, phrase, date, JSON_LINES, lines, len(body), body,
    )  # fmt: skip


def error_body(error: MainspringError, *, v2: bool, ident: str | None = None) -> bytes:
    """The body of an error: ours names code, value, place and next step; Open Inference v2 has one string."""
    extra = {} if ident is None else {"prediction_id": ident}
    if v2:
        return msgspec.json.encode({"error": _clean(str(error)), "code": error.code} | extra)
    fields = {k: _clean(v) if isinstance(v, str) else v for k, v in error.to_dict().items()}
    return msgspec.json.encode({"error": fields} | extra)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def extra_headers(error: MainspringError) -> list[tuple[bytes, bytes]]:
    """What an error adds: when to come back, how to authenticate, and to close a connection whose body was not read."""
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
