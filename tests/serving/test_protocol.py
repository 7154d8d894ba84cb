"""D03, D04, V09 on raw sockets: a real server with short deadlines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATH = "/v1/deployments/d/predict"
ROW = b'{"rows":[{"x0":1,"x1":2.5}]}'
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(ROW), ROW)


@contextlib.contextmanager
def connected(server: Any, timeout: float = 10.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as one:
        yield one


def everything(one: socket.socket) -> bytes:
    """What is sent until the connection is closed; a reset after an answer ends it too."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := one.recv(65536):
            found += data
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_d03_silent_sockets_are_closed_and_good_traffic_goes_on(impatient: Any) -> None:
    """Seen red with ``sweep`` not started: the sockets stayed open."""
    silent = [socket.create_connection(("127.0.0.1", impatient.port), timeout=5) for _ in range(300)]
    begun = time.monotonic()
    client = impatient.client()
    assert client.call("POST", PATH, ROW)[0] == 200
    assert all(one.recv(1) == b"" for one in silent)
    assert time.monotonic() - begun < 4
    assert client.call("POST", PATH, ROW)[0] == 200  # idle after a request: kept
    for one in silent:
        one.close()


@pytest.mark.parametrize("before", [b"", WHOLE, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_d03_a_head_that_trickles_in_is_408(impatient: Any, before: bytes) -> None:
    """The deadline runs from the first byte, not from the last. Seen red with ``due`` set anew at each piece."""
    with connected(impatient) as one:
        if before:
            one.sendall(before)
            assert status_of(one.recv(65536)) == 200
            one.settimeout(0.2)
            with contextlib.suppress(TimeoutError):  # a body may come in a segment of its own
                while one.recv(65536):
                    pass
        begun = time.monotonic()
        answer = b""
        one.settimeout(0.05)
        for byte in HEAD * 10:
            try:
                one.sendall(bytes([byte]))
                answer = one.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            break
        assert status_of(answer) == 408
        assert 0.5 < time.monotonic() - begun < 3


def test_d03_a_body_that_trickles_in_is_408(impatient: Any) -> None:
    """Seen red with ``wait_for`` taken out of ``Bodies.read``."""
    with connected(impatient) as one:
        one.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        begun = time.monotonic()
        one.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - begun < 8:
            with contextlib.suppress(TimeoutError):
                one.sendall(b" ")
                answer = one.recv(65536)
        assert status_of(answer) == 408


def test_d03_a_client_that_never_reads_is_cut_off(impatient: Any) -> None:
    """Seen red with ``stalled`` never set."""
    with connected(impatient, timeout=0.5) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:
                one.sendall(
                    (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (b"x" * 16_000)) * 8
                )
                time.sleep(0.002)
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - begun < 8:
                with contextlib.suppress(TimeoutError):
                    one.sendall(b"x")
                time.sleep(0.05)
    assert impatient.client().call("POST", PATH, ROW)[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"X: y\r\n" * 200_000, 431),
        (b"X: y\r\n" * 200, 431),
        (b"X: " + b"v" * 70_000 + b"\r\n", 431),
        (b"X: " + b"v" * 5_000_000, 431),
        (b"X" * 70_000 + b": v\r\n", 431),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 2, 2\r\n", 400),
        (b"Transfer-Encoding: chunked, identity\r\n", 400),
        (b"X: a\r\n folded\r\n", 400),
        (b"X : space\r\n", 400),
        (b"Host: localhost\r\n", 400),
        (b"NoColon\r\n", 400),
        (b"X: a\x00b\r\n", 400),
        (b"Mainspring-Key: \xff\xfe\r\n", 200),
    ],
)
def test_d04_heads_that_lie_or_do_not_fit(impatient: Any, head: bytes, status: int) -> None:
    """Answered at once, never 5xx. Seen red (the sizes) with the bounds in ``on_header`` and ``data_received`` removed."""
    begun = time.monotonic()
    with connected(impatient) as one:
        with contextlib.suppress(ConnectionError):
            plain = (
                b""
                if b"Content-Length" in head or b"Transfer" in head
                else b"Content-Length: %d\r\n" % len(ROW)
            )
            one.sendall(HEAD + plain + head + b"\r\n" + ROW)
        one.settimeout(3)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while data := one.recv(65536):
                answer += data
                if status == 200:
                    break
    assert status_of(answer) == status
    assert time.monotonic() - begun < 4
    assert impatient.client().call("POST", PATH, ROW)[0] == 200


@pytest.mark.parametrize("target", [b"/" + b"a" * 70_000, b"/v2?" + b"q" * 70_000])
def test_d04_a_request_line_too_long_is_431(impatient: Any, target: bytes) -> None:
    with connected(impatient) as one:
        one.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(everything(one)) == 431


def test_d04_a_trailer_is_bounded(impatient: Any) -> None:
    """Seen red with the bound on silent bytes removed: it was taken in until the body's deadline."""
    with connected(impatient) as one:
        one.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(
                8
            ):  # 512 KiB: far more than a head may have, little enough to be sent before the deadline
                one.send(b"v" * 65_536)
        assert b" 431 " in everything(one)


def test_a_trailer_is_not_a_header(bundle: Any, start: Any, tmp_path: Path) -> None:
    """Seen red with trailers appended to the headers: the key in the trailer opened the door."""
    bundle.route(bundle.target(1, 0.75))
    (tmp_path / "key").write_text("correct horse battery\n")
    server = start(bundle, "--api-key-file", str(tmp_path / "key"))
    with connected(server) as one:
        chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(ROW), ROW)
        one.sendall(HEAD + chunked + b"Authorization: Bearer correct horse battery\r\n\r\n")
        assert status_of(one.recv(65536)) == 401


def test_the_short_way_and_the_long_way_answer_alike(impatient: Any) -> None:
    """Pieces make uvicorn's way answer, a whole request the protocol's own."""

    def ask(
        one: socket.socket, body: bytes, extra: bytes, *, pieces: bool
    ) -> tuple[int, dict[bytes, bytes], Any]:
        head = HEAD + extra + b"Content-Length: %d\r\n\r\n" % len(body)
        one.sendall(head + (b"" if pieces else body))
        if pieces:
            time.sleep(0.05)
            one.sendall(body)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < length(answer):
            answer += one.recv(65536)
        first, *lines = answer.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
        headers = {k.lower(): v for k, v in (line.split(b": ", 1) for line in lines)}
        return status_of(first), headers, json.loads(answer.split(b"\r\n\r\n", 1)[1])

    def length(answer: bytes) -> int:
        return int(answer.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])

    varying = {b"date", b"mainspring-prediction-id"}
    for body, extra in (
        (ROW, b""),
        (b'{"columns":{"x0":[1,2],"x1":[3,4]},"key":"k"}', b""),
        (ROW, b"Mainspring-Key: k\r\nMainspring-Event-Time: 2013-01-01T00:00:00Z\r\n"),
        (ROW, b"Mainspring-Event-Time: soon\r\n"),
        (ROW, b"Origin: http://evil.example\r\n"),
        (ROW, b"Content-Type: text/plain\r\n"),
        (b"{", b""),
        (b'{"rows":[{"x0":1}]}', b""),
        (b'{"rows":[]}', b""),
    ):
        with connected(impatient) as one:
            short = ask(one, body, extra, pieces=False)
            long = ask(one, body, extra, pieces=True)
        assert short[0] == long[0]
        assert short[1].keys() == long[1].keys()
        assert {k: v for k, v in short[1].items() if k not in varying | {b"content-length"}} == {
            k: v for k, v in long[1].items() if k not in varying | {b"content-length"}
        }
        assert short[2] | {"prediction_id": ""} == long[2] | {"prediction_id": ""}


def test_pipelined_requests_are_answered_in_order(impatient: Any) -> None:
    with connected(impatient) as one:
        other = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        one.sendall(WHOLE + other + WHOLE + WHOLE + other)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 5 or not found.endswith(b"}"):
            found += one.recv(65536)
    order = [b"predictions" in part for part in found.split(b"HTTP/1.1 200 OK")[1:]]
    assert order == [True, False, True, True, False]


def test_v09_sigterm_under_keep_alive_load_resets_no_request_that_was_sent(bundle: Any, start: Any) -> None:
    """Seen red with ``drain`` returning at once: requests on their way met closed sockets."""
    bundle.route(bundle.target(1, 0.75))
    server = start(bundle)
    answered, refused, broken = [0] * 12, [0], list[str]()
    stopping = threading.Event()

    def load(number: int) -> None:
        thinking = 0.3 if number >= 8 else 0.0
        while True:
            try:
                one = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            except ConnectionRefusedError:
                refused[0] += 1
                return
            with one:
                closing = False
                while not closing:
                    time.sleep(thinking)
                    try:
                        one.sendall(WHOLE)
                        answer = one.recv(65536)
                    except OSError as error:
                        broken.append(repr(error))
                        return
                    if not answer:
                        broken.append("closed without an answer")
                        return
                    closing = b"connection: close" in answer
                    if status_of(answer) != 200:
                        broken.append(repr(answer))
                        return
                    answered[number] += 1
            if stopping.is_set():
                return  # told to go: the next server would be asked

    threads = [threading.Thread(target=load, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 120
    while sum(answered) <= 200 and not broken and time.monotonic() < until:
        time.sleep(0.02)
    stopping.set()
    os.kill(server.process.pid, 15)
    assert server.process.wait(60) == 0
    for thread in threads:
        thread.join(60)
    assert broken == []
    assert sum(answered) > 200
    assert refused[0] == 0
