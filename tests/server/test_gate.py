"""The outermost layer, on an inner application that would answer anything."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import MutableMapping
from typing import Any

import pytest

from mainspring.errors import ConfigError, TooLarge
from mainspring.operations import EVERY_PROJECT, Principal, Role
from mainspring.server.access import Access, access_for, ensure_token
from mainspring.server.authentication import FixedTokens
from mainspring.server.gate import Gate
from mainspring.server.routes import takes_text
from mainspring.server.tokens import digest_of

TOKEN = "msp_" + "x" * 40
KNOWN = FixedTokens({digest_of(TOKEN): Principal("token", {EVERY_PROJECT: Role.ADMIN})})
HEADERS = {"host": "127.0.0.1:8700", "authorization": f"Bearer {TOKEN}"}


async def _inner(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})


def call(
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    *,
    method: str = "GET",
    path: str = "/x",
    body: list[bytes] | None = None,
    **access: Any,
) -> tuple[int, dict[str, str], bytes]:
    gate = Gate(_inner, Access(**access), [KNOWN])
    pairs = (
        list((HEADERS if headers is None else headers).items()) if not isinstance(headers, list) else headers
    )
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in pairs],
    }
    pieces = list(body or [b""])
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(gate(scope, receive, send))
    start = sent[0]
    return (
        start["status"],
        {k.decode(): v.decode() for k, v in start["headers"]},
        b"".join(m.get("body", b"") for m in sent[1:]),
    )


def test_a_good_request_passes() -> None:
    assert call()[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "10.evil.example",
        "192.168.evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.",
        "localhost:80:80",
        "localhost:port",
        "[::1",
        "[::2]",
        "",
        "127.0.0.1@evil.example",
        "127.0.0.1/health",
        "x/health?",
    ],
)
def test_b01_foreign_hosts_are_refused(host: str) -> None:
    """B01. Seen red with the call of _check_host removed."""
    assert call(HEADERS | {"host": host})[0] == 421
    assert call(HEADERS | {"host": host}, path="/static/a.js")[0] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:1", "[::1]:8700", "localhost"])
def test_b01_own_hosts_pass_whatever_the_port(host: str) -> None:
    assert call(HEADERS | {"host": host})[0] == 200


def test_b01_a_missing_or_doubled_host_is_refused_and_a_forwarded_one_ignored() -> None:
    authorization = ("authorization", HEADERS["authorization"])
    assert call([authorization])[0] == 421
    assert call([authorization, ("host", "localhost"), ("host", "evil.example")])[0] == 421
    assert call(HEADERS | {"host": "evil.example", "x-forwarded-host": "localhost"})[0] == 421


@pytest.mark.parametrize(
    "extra",
    [
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_b02_cross_site_changes_are_refused(extra: dict[str, str]) -> None:
    """B02. Seen red with the call of _check_origin removed."""
    assert call(HEADERS | extra, method="POST")[0] == 403


def test_b02_own_pages_and_tools_may_post() -> None:
    assert (
        call(HEADERS | {"origin": "http://127.0.0.1:8700", "sec-fetch-site": "same-origin"}, method="POST")[0]
        == 200
    )
    assert call(method="POST")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_b03_other_methods_are_refused_and_no_origin_is_ever_allowed(method: str) -> None:
    status, headers, _ = call(HEADERS | {"origin": "http://evil.example"}, method=method)
    assert status in {403, 405}
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer nothing",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        "Bearer",
        "Basic !!!",
        "Basic " + base64.b64encode(b"user").decode(),
        f"Token {TOKEN}",
        TOKEN,
    ],
)
def test_a07_bad_tokens_are_refused(authorization: str) -> None:
    """A07. Seen red with the comparison in Access.principal inverted."""
    assert call({"host": "localhost", "authorization": authorization})[0] == 401


def test_a_token_as_basic_password_passes() -> None:
    basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    assert call({"host": "localhost", "authorization": f"Basic {basic}"})[0] == 200


def test_b06_every_response_carries_the_security_headers() -> None:
    """B06. Seen red with _with_headers returning its argument."""
    for status, headers, _ in (
        call(),
        call({"host": "localhost"}),
        call({"host": "evil.example"}),
        call(path="/live", headers={}),
    ):
        assert "script-src 'self'" in headers["content-security-policy"], status
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_d02_a_declared_excess_is_refused_before_a_byte_is_read() -> None:
    """D02. Seen red with _check_size emptied."""
    assert call(HEADERS | {"content-length": "101"}, method="POST", max_body=100)[0] == 413
    assert call({"host": "localhost", "content-length": "101"}, method="POST", max_body=100)[0] == 413
    assert call(HEADERS | {"content-length": "-1"}, method="POST")[0] == 422
    assert call([*HEADERS.items(), ("content-length", "1"), ("content-length", "2")], method="POST")[0] == 422


def test_d02_what_really_arrives_is_counted() -> None:
    """D02, the gate's own bound. Seen red with its limit a thousand times as high."""
    ten = [b"x" * 10] * 10
    assert call(method="POST", body=ten, max_body=100)[0] == 200
    for headers in (HEADERS, HEADERS | {"content-length": "5"}):
        with pytest.raises(TooLarge):  # the application around answers it
            call(headers, method="POST", body=[*ten, b"x"], max_body=100)


def test_without_a_token_a_browser_is_sent_to_the_login_page() -> None:
    status, headers, _ = call({"host": "localhost", "accept": "text/html"}, path="/models")
    assert (status, headers["location"]) == (303, "/login")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_a06_a_public_bind_without_auth_does_not_start(host: str) -> None:
    """A06. Seen red with the check removed from access_for."""
    with pytest.raises(ConfigError, match="reachable"):
        access_for(TOKEN, host=host, hosts=[])


def test_a06_the_token_is_random_private_and_stable(tmp_path: Any) -> None:
    first = ensure_token(tmp_path / "a")
    assert ensure_token(tmp_path / "a") == first
    assert ensure_token(tmp_path / "b") != first
    assert (tmp_path / "a" / "token").stat().st_mode & 0o777 == 0o600
    assert len(first) >= 43
    (tmp_path / "a" / "token").write_text("short")
    with pytest.raises(ConfigError):
        ensure_token(tmp_path / "a")


def test_roles_are_ordered() -> None:
    assert Role.VIEWER < Role.LABELLER < Role.EDITOR < Role.OPERATOR < Role.ADMIN


def test_what_travels_as_text() -> None:
    assert takes_text(str)
    assert takes_text(str | None)
    assert not takes_text(int)
    assert not takes_text(list[str])
    assert takes_text(str | int)  # a version's number or name: the number may be sent as text
    assert not takes_text(int | None)
