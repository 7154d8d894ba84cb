"""A01: no route answers without credentials, and none exists that nobody thought about."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mainspring.operations import Role, operation
from mainspring.server import app as application
from mainspring.server.access import access_for
from mainspring.server.gate import OPEN_PATHS
from mainspring.server.hosted import Hosted

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
ALLOWED = {"/live", "/ready", "/login"}


def _address(path: str) -> str:
    return re.sub(r"\{[^}]+\}", "x", path).replace("/api/v1/x/", "/api/v1/abuse/")


def test_a01_the_allow_list_is_frozen() -> None:
    assert OPEN_PATHS == ALLOWED


def test_a01_every_route_and_method_without_credentials(plane: Any) -> None:
    """A01. Seen red with the check of the principal removed from Gate._check."""
    paths = {_address(r.path) for r in plane.routes()} | {
        "/",
        "/docs",
        "/metrics",
        "/openapi.json",
        "/nothing",
    }
    assert len(paths) > 70
    for path in sorted(paths):
        for method in METHODS:
            answer = plane.send(method, path, login=False)
            if method in {"PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}:
                assert answer.status == 405, (
                    method,
                    path,
                )  # before routing: the same whether or not it exists
                assert "access-control-allow-origin" not in answer.headers
            elif path in ALLOWED:
                assert answer.status in {200, 405, 401, 403, 415, 422, 400}, (method, path)
            else:
                assert answer.status == 401, (method, path, answer.body)
                assert method == "HEAD" or answer.code == "unauthenticated"


def test_a01_a_socket_or_an_event_stream_is_no_way_in(plane: Any) -> None:
    """A01. Seen red with the check of the principal removed from Gate._check."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in ("/", "/api/v1/abuse/lineage/list_events"):
        assert plane.send("GET", path, headers=upgrade, login=False).status in {401, 403}
        assert plane.send("GET", path, headers={"Accept": "text/event-stream"}, login=False).status == 401


def test_a01_static_files_are_open_and_nothing_beside_them(plane: Any) -> None:
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/staticx",
    ):
        answer = plane.send("GET", path, login=False)
        assert answer.status in {401, 404}, path
        assert b"import" not in answer.body


class _Undeclared:
    room = "undeclared"

    @operation(role=Role.VIEWER)
    def fine(self) -> int:
        """One."""
        return 1

    def forgotten(self) -> int:
        return 2


def test_a01_an_operation_without_policy_stops_start_up(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A01. Seen red with the check in operations_of skipping what has no policy."""
    monkeypatch.setattr(application, "ROOMS", {"undeclared": "nowhere"})
    monkeypatch.setattr(application, "room_class", lambda _name: _Undeclared)
    access = access_for(plane.running.token, host="127.0.0.1", hosts=[])
    with pytest.raises(TypeError, match="forgotten is public but declares no policy"):
        application.build_app(Hosted(plane.workspace), access)
