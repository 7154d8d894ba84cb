"""B01, B02, B06 on every route of the real server."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from mainspring.operations import Kind, Operation
from mainspring.server.routes import takes_text

HOSTS = [
    "evil.example", "10.evil.example", "192.168.evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1.", "[::2]", "a b",
]  # fmt: skip


def _address(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", path).replace("/api/v1/x/", "/api/v1/abuse/")


def _posts(operations: list[Operation]) -> list[str]:
    return [
        f"/api/v1/abuse/{o.room}/{o.name}"
        for o in operations
        if o.policy.changes or o.policy.kind is Kind.UPLOAD
    ]


@pytest.mark.parametrize("host", HOSTS)
def test_b01_foreign_hosts_on_every_route(plane: Any, host: str) -> None:
    """B01. Seen red with the call of _check_host removed."""
    for path in sorted({_address(r.path) for r in plane.routes()} | {"/static/mainspring.css"}):
        if path in {"/live", "/ready"}:  # probes of an orchestrator come by address; they tell nothing
            continue
        answer = plane.send("GET", path, headers={"Host": host})
        assert answer.status in {400, 421}, path


def test_b01_a_forwarded_host_changes_nothing(plane: Any) -> None:
    for name in ("X-Forwarded-Host", "Forwarded", "X-Host"):
        assert plane.send("GET", "/api/v1/version", headers={name: "evil.example"}).status == 200
        answer = plane.send("GET", "/api/v1/version", headers={"Host": "evil.example", name: "127.0.0.1"})
        assert answer.status == 421


FOREIGN = [
    {"Origin": "null"},
    {"Origin": "http://localhost:9999"},
    {"Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda f: "-".join(f.values()))
def test_b02_a_foreign_page_cannot_post_anywhere(
    plane: Any, operations: list[Operation], foreign: dict[str, str]
) -> None:
    """B02. Seen red with the call of _check_origin removed."""
    before = plane.state()
    for path in [*_posts(operations), "/login", "/logout"]:
        answer = plane.send("POST", path, body=b"{}", headers={"Content-Type": "application/json"} | foreign)
        assert (answer.status, answer.code) == (403, "permission_denied"), path
    assert plane.state() == before


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_b02_what_a_form_can_send_is_refused(plane: Any, operations: list[Operation], kind: str) -> None:
    """B02. Seen red with the check of the media type removed from _json_body."""
    before = plane.state()
    for operation in operations:
        if not operation.policy.changes:
            continue
        path = f"/api/v1/abuse/{operation.room}/{operation.name}"
        body = json.dumps({"name": "forged", "experiment": "forged"}).encode()
        if operation.policy.kind is Kind.UPLOAD:
            if not kind:
                continue  # bytes without a type are what an upload is
            needed = {n: "x" for n, p in operation.parameters.items() if n != "body" and p.default is p.empty}
            path += "?" + "&".join(f"{k}={v}" for k, v in needed.items())
        answer = plane.send("POST", path, body=body, headers={"Content-Type": kind} if kind else {})
        assert answer.status == 415, (path, answer.body)
    assert plane.state() == before


def test_b02_reading_changes_nothing(plane: Any, operations: list[Operation]) -> None:
    """B02. Every GET there is, with arguments, leaves the database as it was. Seen red with an event written for each GET."""
    plane.workspace.labels.settle_parked()
    before = plane.state()
    answered = 0
    for operation in operations:
        path = f"/api/v1/abuse/{operation.room}/{operation.name}"
        if operation.policy.changes or operation.policy.kind is Kind.UPLOAD:
            assert plane.send("GET", path).status == 405, path
            assert plane.send("HEAD", path).status == 405, path
            continue
        needed = {
            n: ("x" if takes_text(operation.types[n]) else "1")
            for n, p in operation.parameters.items()
            if p.default is p.empty
        }
        answer = plane.send("GET", f"{path}?" + "&".join(f"{k}={quote(v)}" for k, v in needed.items()))
        assert answer.status < 500, (path, answer.body)
        answered += answer.status == 200
        assert (
            plane.send("POST", path, body=b"{}", headers={"Content-Type": "application/json"}).status == 405
        )
    for route in plane.routes():
        if "GET" in (route.methods or ()) and not route.path.startswith("/api/"):
            assert plane.send("GET", _address(route.path)).status < 500, route.path
    assert answered > 10
    assert plane.state() == before


def test_b06_headers_on_every_answer(plane: Any, operations: list[Operation]) -> None:
    """B06. Seen red with _with_headers returning its argument."""
    answers = {}
    for route in plane.routes():
        path = _address(route.path)
        answers[f"GET {path}"] = plane.send("GET", path)
        answers[f"GET {path} without token"] = plane.send("GET", path, login=False)
        answers[f"POST {path}"] = plane.send(
            "POST", path, body=b"[]", headers={"Content-Type": "application/json"}
        )
    answers["wrong host"] = plane.send("GET", "/", headers={"Host": "evil.example"})
    answers["login redirect"] = plane.send("GET", "/", headers={"Accept": "text/html"}, login=False)
    answers["not found"] = plane.send("GET", "/static/none.css")
    assert {a.status for a in answers.values()} >= {200, 303, 400, 401, 404, 405, 421}
    for what, answer in answers.items():
        policy = answer.headers.get("content-security-policy", "")
        assert "script-src 'self'" in policy or "default-src 'none'" in policy, what
        assert "frame-ancestors 'none'" in policy, what
        assert "unsafe" not in policy, what
        assert answer.headers["x-content-type-options"] == "nosniff", what
        assert answer.headers["referrer-policy"] in {"no-referrer", "same-origin"}, what
        assert answer.headers["cross-origin-opener-policy"] == "same-origin", what
        assert answer.headers["cross-origin-resource-policy"] == "same-origin", what
        assert "server" not in answer.headers, what
        assert "access-control-allow-origin" not in answer.headers, what


def test_b06_the_session_cookie_is_for_this_site_only(plane: Any) -> None:
    body = f"token={plane.running.token}".encode()
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = plane.send("POST", "/login", body=body, headers=form, login=False)
    assert answer.status < 400, answer.body
    (cookie,) = answer.cookies
    assert {"httponly", "samesite=strict", "path=/"} <= {p.strip().lower() for p in cookie.split(";")[1:]}
    session = {"Cookie": cookie.partition(";")[0]}
    assert plane.send("GET", "/api/v1/version", headers=session, login=False).status == 200
    forged = {"Cookie": cookie.partition(";")[0][:-3] + "abc"}
    assert plane.send("GET", "/api/v1/version", headers=forged, login=False).status == 401
