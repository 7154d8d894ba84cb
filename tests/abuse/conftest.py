"""A real control plane over HTTP, one per test module, and a client that sends bytes as they are."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Mount, Route

from mainspring import config
from mainspring.operations import Operation, operations_of
from mainspring.rooms import ROOMS, room_class
from mainspring.server.access import access_for
from mainspring.server.app import build_app
from mainspring.server.hosted import Hosted
from mainspring.server.pages import page_routes
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

POLICY = '[project]\nname = "abuse"\n'
CANARY = b"canary-5b0f1c"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    cookies: list[str] = field(default_factory=list)

    @property
    def code(self) -> str | None:
        """The error's stable code, if this is an error as we write them."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return None


@dataclass
class Plane:
    """The server under attack."""

    running: Running
    workspace: Workspace
    host: str
    port: int

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.running.token}"}

    def send(
        self,
        method: str,
        target: str,
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        login: bool = True,
    ) -> Answer:
        """One request; the target goes out byte for byte, nothing is normalised or quoted."""
        lines = {"Host": f"{self.host}:{self.port}", "Connection": "close", "Content-Length": str(len(body))}
        lines |= (self.bearer if login else {}) | (headers or {})
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        return self.raw(head.encode("utf-8", "surrogatepass") + body, method)

    def raw(self, data: bytes, method: str = "GET") -> Answer:
        with socket.create_connection((self.host, self.port), timeout=20) as connection:
            connection.sendall(data)
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            found = response.read()
            headers = {k.lower(): v for k, v in response.getheaders()}
            cookies = response.msg.get_all("set-cookie") or []
            response.close()
        return Answer(status=response.status, headers=headers, body=found, cookies=cookies)

    def post(self, operation: str, body: Any, **headers: str) -> Answer:
        room, _, name = operation.partition(".")
        return self.send(
            "POST",
            f"/api/v1/abuse/{room}/{name}",
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | headers,
        )

    def state(self) -> str:
        """A digest of everything in the database."""
        with self.workspace.base.store.read() as tx:
            tables = [
                r["name"] for r in tx.all("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            ]
            rows = {t: sorted(map(repr, tx.all(f'SELECT * FROM "{t}"'))) for t in tables}
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def routes(self) -> list[Route]:
        """All routes of the application, also those of pages."""
        access = access_for(self.running.token, host="127.0.0.1", hosts=[])
        app: Any = build_app(Hosted(self.workspace), access, pages=page_routes)
        found = app._app.routes
        assert [type(r) for r in found if not isinstance(r, Route)] in ([], [Mount])
        return [r for r in found if isinstance(r, Route)]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    root = tmp_path_factory.mktemp("abuse") / "project"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    (root.parent / "canary").write_bytes(CANARY)
    with Workspace(config.load(root)) as workspace, running_server(workspace) as running:
        host, _, port = running.url.removeprefix("http://").partition(":")
        yield Plane(running=running, workspace=workspace, host=host, port=int(port))


def all_operations() -> list[Operation]:
    return [o for r in ROOMS for o in operations_of(room_class(r)).values()]


@pytest.fixture(scope="module")
def operations() -> list[Operation]:
    return all_operations()


@pytest.fixture(scope="module")
def outside(plane: Plane) -> Path:
    """The directory around the project: nothing may be read from it or written into it."""
    return plane.workspace.settings.root.parent
