"""The one outermost layer: nothing is routed, read or logged before a request has passed it.

Order: Host (parsed, exact) → headers that are sent twice → Origin and Sec-Fetch-Site for anything that may change state →
encoding and declared size → who calls, by the first authenticator that knows. The gate names *who* calls (``operations.acting``)
for all that follows; *what* they may do is decided by the operation. Security headers go on every response, errors included.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from mainspring.errors import (
    InvalidInput,
    MainspringError,
    MethodNotAllowed,
    Misdirected,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from mainspring.operations import ANONYMOUS, Principal, acting
from mainspring.records.base import to_json
from mainspring.server.access import Access
from mainspring.server.authentication import Authenticator, Credentials

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "mainspring-session"
"""The session's cookie over plain HTTP on loopback. Over TLS it is ``__Host-mainspring-session``, which browsers accept
only from this host, with Secure and without Domain; the plain name is then ignored."""

ONCE = frozenset(
    {b"authorization", b"content-encoding", b"content-type", b"idempotency-key", b"origin", b"sec-fetch-site"}
)
"""Headers that are refused if they are sent twice: two readers could each use a different one."""

SAFE_METHODS = frozenset({"GET", "HEAD"})
METHODS = SAFE_METHODS | {"POST"}
OPEN_PATHS = frozenset({"/live", "/ready", "/login"})
"""Reachable without a token: liveness, readiness and the login page. Static files are open too."""

_CSP = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-security-policy", _CSP),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class Gate:
    """ASGI middleware that checks every request; the order of the checks is in the module's docstring."""

    def __init__(self, app: App, access: Access, authenticators: Sequence[Authenticator]) -> None:
        self._app = app
        self._access = access
        self._authenticators = authenticators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket exists here
            await send({"type": "websocket.close", "code": 1008})
            return
        guarded = _add_security_headers(send)
        try:
            self._check(scope)
            principal = await self._identify(scope)
        except MainspringError as error:
            await answer(guarded, error, scope)
            return
        with acting(principal):
            await self._app(scope, _limit_body(receive, self._access.max_body), guarded)

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if scope["path"] not in {"/live", "/ready"}:
            self._check_host(headers)
        if scope["method"] not in METHODS:
            raise MethodNotAllowed(
                "this method is not used here", value=scope["method"], next_step="Use GET or POST."
            )
        _check_once(headers)
        if scope["method"] not in SAFE_METHODS:
            self._check_origin(headers)
        _check_encoding(headers)
        self._check_size(headers)

    async def _identify(self, scope: Scope) -> Principal:
        """Who calls. Raises :class:`Unauthenticated` for an unknown caller of a path that is not open."""
        path: str = scope["path"]
        if path in {"/live", "/ready"}:
            return ANONYMOUS
        principal = await self._principal(scope)
        if principal is None and not (path in OPEN_PATHS or path.startswith("/static/")):
            raise Unauthenticated(
                "a valid token is needed",
                next_step="Send 'Authorization: Bearer <token>'; 'mainspring env --token' prints it.",
            )
        return principal or ANONYMOUS

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        values = [v for k, v in headers if k == b"host"]
        if len(values) != 1 or host_of(values[0]) not in self._access.hosts:
            shown = values[0].decode("latin-1") if values else "(none)"
            raise Misdirected(
                "this server does not answer for that host",
                value=shown,
                next_step="Use the address it printed at start, or configure 'hosts'.",
            )

    def _check_origin(self, headers: list[tuple[bytes, bytes]]) -> None:
        sent = {k: v.decode("latin-1") for k, v in headers if k in {b"origin", b"sec-fetch-site", b"host"}}
        origin = sent.get(b"origin")
        if origin is not None:
            own = {f"{scheme}://{sent.get(b'host', '').lower()}" for scheme in ("http", "https")}
            if origin.lower() not in own and origin not in self._access.origins:
                raise PermissionDenied("requests from this origin are refused", value=origin)
        site = sent.get(b"sec-fetch-site")
        if site is not None and site not in {"same-origin", "none"}:
            raise PermissionDenied("cross-site requests are refused", value=site)

    def _check_size(self, headers: list[tuple[bytes, bytes]]) -> None:
        lengths = [v for k, v in headers if k == b"content-length"]
        if len(lengths) > 1 or any(not v.isdigit() for v in lengths):
            raise InvalidInput("malformed Content-Length", value=lengths[0].decode("latin-1"))
        if lengths and (len(lengths[0]) > 18 or int(lengths[0]) > self._access.max_body):
            raise TooLarge("the body is too large", value=f"{lengths[0][:40].decode()} bytes")

    async def _principal(self, scope: Scope) -> Principal | None:
        headers = [v.decode("latin-1") for k, v in scope["headers"] if k == b"authorization"]
        credentials = Credentials(authorization=headers[0] if headers else None, session=session_of(scope))
        for authenticator in self._authenticators:
            principal = await authenticator.authenticate(credentials)
            if principal is not None:
                return principal
        return None


def cookie_name(scope: Scope) -> str:
    """The name of the session's cookie for a request over this scheme (uvicorn has set it, also from a trusted proxy's headers)."""
    return f"__Host-{COOKIE}" if scope.get("scheme") == "https" else COOKIE


def session_of(scope: Scope) -> str | None:
    """The value of the session's cookie, if there is one."""
    for value in (v.decode("latin-1") for k, v in scope["headers"] if k == b"cookie"):
        try:
            cookie = SimpleCookie(value).get(cookie_name(scope))
        except CookieError:
            continue
        if cookie is not None:
            return cookie.value
    return None


def _check_once(headers: list[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in ONCE and name in seen:
            raise InvalidInput("a header is sent twice", value=name.decode("latin-1"))
        seen.add(name)


def _check_encoding(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuses compressed bodies. Nothing is decompressed here, so the compressed bytes would be stored as the content."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise UnsupportedMedia(
                "compressed bodies are not accepted",
                value=value.decode("latin-1"),
                place="Content-Encoding",
                next_step="Send the body without Content-Encoding.",
            )


def host_of(value: bytes) -> str | None:
    """The host name or address of a ``Host`` header, lower case, without port; None if malformed.

    >>> host_of(b"LocalHost:80"), host_of(b"[::1]:80"), host_of(b"127.0.0.1.evil.example"), host_of(b"a b")
    ('localhost', '::1', '127.0.0.1.evil.example', None)
    """
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        if not bracket or (port and not (port[0] == ":" and port[1:].isdigit())):
            return None
        try:
            return str(ipaddress.IPv6Address(address))
        except ValueError:
            return None
    name, colon, port = text.partition(":")
    if (
        (colon and not port.isdigit())
        or not name
        or not all(c.isalnum() or c in ".-_" for c in name)
        or not name.isascii()
    ):
        return None
    return name


def _add_security_headers(send: Send) -> Send:
    async def guarded(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {k for k, _ in message.get("headers", [])}
            message["headers"] = [*message.get("headers", []), *(h for h in HEADERS if h[0] not in present)]
        await send(message)

    return guarded


def _limit_body(receive: Receive, limit: int) -> Receive:
    """Limits the bytes that arrive, so that a false or missing Content-Length makes no difference."""
    received = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise TooLarge("the body is too large", value=f"more than {limit} bytes")
        return message

    return bounded


async def answer(send: Send, error: MainspringError, scope: Scope) -> None:
    """Send an error as JSON, or as a redirect to the login page for a person without a session."""
    wants_page = any(k == b"accept" and b"text/html" in v for k, v in scope["headers"])
    if isinstance(error, Unauthenticated) and wants_page and scope["method"] != "HEAD":
        await send(
            {
                "type": "http.response.start",
                "status": 303,
                "headers": [(b"location", b"/login"), (b"content-length", b"0")],
            }
        )
        await send({"type": "http.response.body", "body": b""})
        return
    body = to_json({"error": error.to_dict()})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
