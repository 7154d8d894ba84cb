"""Calls that are repeated, at once or later, happen once; uploads and downloads end whatever the other side does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from mainspring import config
from mainspring.operations import operations_of
from mainspring.records.base import new_id
from mainspring.rooms import ROOMS, room_class
from mainspring.storage import failpoints
from mainspring.testing.server import Running, running_server
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "pipelines/train.py:train"
[deploy.buy]
model = "buy"
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    with Workspace(config.load(root)) as opened:
        yield opened


@pytest.fixture
def server(here: Workspace) -> Iterator[Running]:
    with running_server(here) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {server.token}"}
    limits = httpx2.Limits(max_connections=100)
    with httpx2.Client(
        base_url=f"{server.url}/api/v1/shop", headers=headers, trust_env=False, timeout=30, limits=limits
    ) as client:
        yield client


def post(http: httpx2.Client, path: str, key: str, **arguments: Any) -> httpx2.Response:
    return http.post(path, json=arguments, headers={"idempotency-key": key})


def test_c05_retries_at_the_same_moment_are_one_call(here: Workspace, http: httpx2.Client) -> None:
    """Seen red without Keys.hold, and with KeyTaken a plain constraint violation: 500 for the later ones."""
    barrier = threading.Barrier(8)
    key = new_id()
    failpoints.arm("ledger.done:sleep:1")  # the first is slow to commit

    def call(_: int) -> httpx2.Response:
        barrier.wait()
        return post(http, "/tracking/create_run", key, experiment="e", name="one")

    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(call, range(8)))
    finally:
        failpoints.arm("")
    assert {a.status_code for a in answers} == {200}
    assert len({a.content for a in answers}) == 1
    assert len(here.lineage.list_events(kind="run.created").items) <= 1
    assert len({a.json()["id"] for a in answers}) == 1


def test_every_changing_operation_answers_a_repeated_key(here: Workspace, http: httpx2.Client) -> None:
    """The rule is in one place: whatever an operation does or forgets, its answer is kept under the key.

    Seen red without Ledger.settle in server.routes: tick, publish, ingest and set_clock ran again.
    """
    calls: dict[str, dict[str, Any]] = {
        "loop/tick": {},
        "loop/set_clock": {"now": "2030-01-01T00:00:00Z"},
        "deploy/publish": {},
        "monitoring/ingest": {},
        "monitoring/evaluate_windows": {},
        "labels/settle_parked": {},
        "labels/ingest_relayed": {},
        "objects/expire_uploads": {},
        "objects/create_tree": {"files": {}},
        "loop/request_retrain": {"deployment": "buy", "reason": "once"},
    }
    for path, arguments in calls.items():
        key = new_id()
        first = post(http, path, key, **arguments)
        assert first.status_code == 200, (path, first.text)
        again = post(http, path, key, **arguments)
        assert (again.status_code, again.content) == (200, first.content), path
        assert again.headers.get("idempotent-replay") == "true", path
    assert len(here.loop.list_jobs()) == 1


def test_no_changing_operation_is_a_download() -> None:
    """A stream cannot be kept under a key."""
    for name in ROOMS:
        for operation in operations_of(room_class(name)).values():
            assert not (operation.policy.changes and operation.policy.kind == "download"), operation.id


def test_a_repeated_upload_is_answered_from_the_first(http: httpx2.Client) -> None:
    """Seen red with the body among the arguments of the key in OperationRoute._call: 500."""
    headers = {"content-type": "application/octet-stream", "idempotency-key": new_id()}
    first = http.post("/objects/put", content=b"abc", headers=headers)
    again = http.post("/objects/put", content=b"abc", headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()


def test_d03_many_slow_uploads_do_not_stop_the_server(server: Running, http: httpx2.Client) -> None:
    """Seen red with uploads fed by and read in the threads of all other calls: forty held the server for ever."""
    place = urlsplit(server.url)
    head = (
        f"POST /api/v1/shop/objects/put HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {server.token}\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
    )
    slow = [socket.create_connection((place.hostname or "", place.port or 0)) for _ in range(45)]
    try:
        for connection in slow:
            connection.sendall(head.encode() + b"x" * 1000)
        time.sleep(0.3)
        began = time.monotonic()
        assert http.get("/loop/get_clock", timeout=5).status_code == 200
        assert http.get(f"{server.url}/ready", timeout=5).status_code == 200
        assert time.monotonic() - began < 3
    finally:
        for connection in slow:
            connection.close()
    # Their threads end when the clients are gone: an upload goes through.
    sent = http.post("/objects/put", content=b"z" * 100, headers={"content-type": "application/octet-stream"})
    assert sent.status_code == 200


def test_sixty_uploads_at_once_all_arrive(http: httpx2.Client) -> None:
    """Seen red with a thread per piece in _Pipe.feed: with forty readers no thread was left to feed them."""

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"p" * 20_000
            time.sleep(0.02)

    def send(_: int) -> int:
        headers = {"content-type": "application/octet-stream"}
        return http.post("/objects/put", content=pieces(), headers=headers, timeout=15).status_code

    with ThreadPoolExecutor(60) as pool:
        assert set(pool.map(send, range(60))) == {200}


def test_a_query_parameter_that_stands_twice_is_refused(http: httpx2.Client) -> None:
    answer = http.get("/lineage/list_events?limit=1&limit=2")
    assert answer.status_code == 422
    assert answer.json()["error"]["value"] == "limit"


def test_a_damaged_object_is_an_error_not_a_short_answer(here: Workspace, http: httpx2.Client) -> None:
    """Seen red with the first piece read after the headers were sent: 200 and a broken connection."""
    sent = http.post(
        "/objects/put", content=b"q" * 5000, headers={"content-type": "application/octet-stream"}
    )
    for pack in (here.settings.home / "objects").rglob("*"):
        if pack.is_file() and pack.stat().st_size >= 5000:
            pack.chmod(0o600)
            pack.write_bytes(b"\0" * pack.stat().st_size)
    answer = http.get("/objects/get", params={"digest": sent.json()["digest"]})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "corrupt"
    assert str(here.settings.home) not in answer.text
