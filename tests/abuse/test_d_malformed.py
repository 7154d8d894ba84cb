"""D01, D02: malformed and endless bodies against the real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.operations import Kind, Operation

JSON = {"Content-Type": "application/json"}
MALFORMED = {
    "nan": b'{"name": NaN}',
    "infinity": b'{"name": Infinity}',
    "overflow": b'{"name": 1e400}',
    "digits": b'{"name": ' + b"9" * 5000 + b"}",
    "2^63": b'{"name": 9223372036854775808}',
    "2^64": b'{"name": 18446744073709551616}',
    "surrogate": b'{"name": "\\ud800"}',
    "nul": b'{"name": "a\\u0000b"}',
    "utf8": b'{"name": "\xff\xfe"}',
    "bom": b'\xef\xbb\xbf{"name": "a"}',
    "utf16": '{"name": "a"}'.encode("utf-16"),
    "twice": b'{"name": "a", "name": "b"}',
    "deep": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-open": b"[" * 100_000,
    "truncated": b'{"name": "a',
    "empty": b"",
    "trailing": b'{"name": "a"} x',
    "two": b'{"name": "a"}{"name": "b"}',
    "keys": b"{" + b",".join(b'"k%d":1' % i for i in range(100_001)) + b"}",
    "array": b"[]",
    "null": b"null",
    "text": b'"name"',
    "number": b"-0",
    "comment": b'{"name": "a" /* x */}',
    "single-quotes": b"{'name': 'a'}",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_d01_every_post_route(plane: Any, operations: list[Operation], kind: str) -> None:
    """D01. Seen red with decode_object doing only json.loads."""
    before = plane.state()
    big = len(MALFORMED[kind]) > 50_000
    routes = [o for o in operations if o.policy.changes and o.policy.kind is Kind.UNARY]
    for operation in routes[:: 5 if big else 1]:
        path = f"/api/v1/abuse/{operation.room}/{operation.name}"
        answer = plane.send("POST", path, body=MALFORMED[kind], headers=JSON)
        assert (answer.status, answer.code) in {(400, "malformed_json"), (413, "too_large")}, (path, answer)
    assert plane.state() == before


@pytest.mark.parametrize("value", ["NaN", "[" * 100_000, "1e400", "{", "", "99999999999999999999", "\u0000"])
def test_d01_what_stands_in_a_query(plane: Any, operations: list[Operation], value: str) -> None:
    """D01. Seen red with what stands in a query decoded by msgspec alone: an integer beyond 64 bits reached the database."""
    from urllib.parse import quote

    for operation in operations:
        if operation.policy.changes or operation.policy.kind is Kind.UPLOAD or len(value) > 60_000:
            continue
        for name in operation.parameters:
            target = f"/api/v1/abuse/{operation.room}/{operation.name}?{name}={quote(value)}"
            answer = plane.send("GET", target)
            assert answer.status < 500, (target, answer.body)


def test_d05_pages_are_bounded(plane: Any) -> None:
    for operation in ("lineage/list_events", "tracking/search_runs", "data/list_versions?dataset=d"):
        joint = "&" if "?" in operation else "?"
        for limit in ("1000000000", "-1", "0", "1.5", "true"):
            answer = plane.send("GET", f"/api/v1/abuse/{operation}{joint}limit={limit}")
            assert 400 <= answer.status < 500, (operation, limit, answer.body)


# --- sizes, against a process of its own whose memory is measured -------------------------------------------------------


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("sizes")
    (root / "mainspring.toml").write_text('[project]\nname = "abuse"\n')
    command = [
        sys.executable,
        "-m",
        "mainspring.cli",
        "-C",
        str(root),
        "up",
        "--json",
        "--no-serving",
        "--port",
        "0",
        "--tick",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told: dict[str, Any] = json.loads(server.stdout.readline())
    host, _, port = told["url"].removeprefix("http://").partition(":")
    token = (root / ".mainspring" / "token").read_text()
    try:
        yield {"address": (host, int(port)), "token": token, "pid": server.pid}
        assert server.poll() is None
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        server.stdout.close()


def _memory(pid: int) -> int:
    """Resident bytes of the process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _head(process: dict[str, Any], path: str, *lines: str, token: str | None = None) -> bytes:
    host, port = process["address"]
    given = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}:{port}",
        f"Authorization: Bearer {token or process['token']}",
        *lines,
    ]
    return ("\r\n".join(given) + "\r\n\r\n").encode()


def _push(process: dict[str, Any], head: bytes, pieces: Iterator[bytes]) -> int:
    """Send until the server answers; returns its status. A server that closes early has answered before."""
    with socket.create_connection(process["address"], timeout=30) as connection:
        connection.sendall(head)
        stop = threading.Event()

        def send() -> None:
            try:
                for piece in pieces:
                    if stop.is_set():
                        return
                    connection.sendall(piece)
            except OSError:
                return

        sender = threading.Thread(target=send)
        sender.start()
        try:
            answer = connection.recv(4096)
        finally:
            stop.set()
            with contextlib.suppress(OSError):  # the server may have closed already
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()
    return int(answer.split()[1]) if answer else 0


def _chunks(size: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"%x\r\n" % size + b"x" * size + b"\r\n"
    yield b"0\r\n\r\n"


CREATE = "/api/v1/abuse/tracking/create_experiment"
LIMIT = 1 << 20


@pytest.mark.parametrize("good", [True, False], ids=["token", "no-token"])
def test_d02_endless_bodies(process: dict[str, Any], good: bool) -> None:
    """D02. Seen red with the limit of _json_body removed."""
    token = None if good else "wrong" * 10
    before = _memory(process["pid"])
    head = _head(process, CREATE, "Content-Type: application/json", "Transfer-Encoding: chunked", token=token)
    assert _push(process, head, _chunks(64 << 10, 3200)) == (413 if good else 401)
    assert _push(process, head, _chunks(32, 100_000)) == (413 if good else 401)
    # One limit's worth is what a request may hold, and the collector may keep one more.
    assert _memory(process["pid"]) - before < 2 * LIMIT + (8 << 20)


def test_d02_a_lying_length(process: dict[str, Any]) -> None:
    """D02. Seen red with the check of the declared length removed from _json_body: the server waits."""
    kind = "Content-Type: application/json"
    for length in (str(10**12), str(LIMIT + 1)):
        assert _push(process, _head(process, CREATE, kind, f"Content-Length: {length}"), iter([b"{}"])) == 413
    for length in ("-1", "1e3", "0x10", "9" * 30):
        assert _push(process, _head(process, CREATE, kind, f"Content-Length: {length}"), iter([b"{}"])) in {
            400,
            413,
            422,
        }
    # Shorter than the body: what follows is another request, and no good one.
    assert _push(process, _head(process, CREATE, kind, "Content-Length: 2"), iter([b"{}xxxxxxxxxxxx"])) in {
        400,
        422,
    }
    both = _head(process, CREATE, kind, "Content-Length: 5", "Transfer-Encoding: chunked")
    assert _push(process, both, _chunks(4, 1)) in {400, 422}


def test_d02_a_compressed_body_is_not_unpacked(process: dict[str, Any]) -> None:
    """D02. Seen red without _check_encoding: 400, and 200 where the packed bytes happen to be taken as they are."""
    import gzip

    bomb = gzip.compress(b'{"name": "' + b"x" * (64 << 20) + b'"}')
    before = _memory(process["pid"])
    head = _head(
        process,
        CREATE,
        "Content-Type: application/json",
        "Content-Encoding: gzip",
        f"Content-Length: {len(bomb)}",
    )
    assert _push(process, head, iter([bomb])) == 415
    assert _memory(process["pid"]) - before < 16 << 20


def test_d02_good_requests_pass_meanwhile(process: dict[str, Any]) -> None:
    body = b'{"name": "still-here"}'
    head = _head(process, CREATE, "Content-Type: application/json", f"Content-Length: {len(body)}")
    assert _push(process, head, iter([body])) == 200
