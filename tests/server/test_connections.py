"""What a client may cost before anybody knows who it is: real sockets against the control plane's own server."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest

from mainspring.server.connections import ControlServer, Limits, control_config
from mainspring.server.run import listen

Address = tuple[str, int]
PATIENT_S = 90.0
"""How long a test waits for what must come: a busy machine is slow, not broken."""


async def _echo(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Reads the body, then tells it and the headers, as a handler would that looks at both."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    told = {
        "method": scope["method"],
        "path": scope["path"],
        "headers": {k.decode(): v.decode("latin-1") for k, v in scope["headers"]},
        "body": body.decode("latin-1"),
    }
    await _say(send, 200, json.dumps(told).encode())


async def _deaf(_scope: Any, _receive: Any, send: Any) -> None:
    """Answers without reading the body."""
    await _say(send, 401, b"{}")


async def _say(send: Any, status: int, body: bytes) -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


Start = Callable[..., Address]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run an application as the control plane is run."""
    running: list[tuple[ControlServer, threading.Thread, socket.socket]] = []

    def begin(app: Any = _echo, **limits: Any) -> Address:
        listener = listen("127.0.0.1", 0)
        server = ControlServer(control_config(app, Limits(**limits)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.005)
        host, port = listener.getsockname()
        return str(host), int(port)

    yield begin
    for server, thread, listener in running:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=PATIENT_S)


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def ask(address: Address, head: str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") -> list[int]:
    with connect(address) as connection:
        connection.sendall(head.encode())
        return statuses(everything(connection))


def test_d04_one_endless_header_stalls_nobody(start: Start) -> None:
    """D04. Seen red on 0.1, which took 64 MB (28 s, all other clients silent), and with the bound on silent bytes removed."""
    address = start()
    piece = b"a" * 65536
    with connect(address) as hostile:
        hostile.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Endless: ")
        sent = 0
        for _ in range(64):
            with contextlib.suppress(OSError):
                hostile.sendall(piece)
            sent += len(piece)
            assert ask(address) == [200]
            if select.select([hostile], [], [], 0)[0]:
                break
        assert sent < 1 << 20, "nobody takes a header of a megabyte"
        assert statuses(everything(hostile)) == [431]


def test_d04_many_headers_and_long_lines_are_refused(start: Start) -> None:
    """D04. Seen red on 0.1, which took them, and with the bound in on_header removed."""
    address = start()
    many = "".join(f"X-{i}: 1\r\n" for i in range(1000))
    assert ask(address, f"GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n") == [431]
    wide = "".join(f"X-{i}: {'a' * 2000}\r\n" for i in range(100))
    assert ask(address, f"GET / HTTP/1.1\r\nHost: x\r\n{wide}\r\n") == [431]
    assert ask(address, f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: x\r\n\r\n") == [431]


def test_d04_silent_and_trickling_sockets_are_closed(start: Start) -> None:
    """D04: 300 that say nothing, and some that send a byte now and then. Seen red on 0.1: all were open for ever; and with the
    sweep not started."""
    address = start(head_s=1.0)
    silent = [connect(address) for _ in range(300)]
    trickling = [connect(address) for _ in range(3)]
    stop = threading.Event()

    def trickle() -> None:
        for connection in trickling:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        while not stop.wait(0.2):
            for connection in trickling:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        assert ask(address) == [200]
        for connection in silent:
            with connection:
                assert everything(connection) == b""
        for connection in trickling:
            with connection:
                assert statuses(everything(connection)) in ([408], [])
    finally:
        stop.set()
        sender.join()


def test_d04_empty_lines_are_no_sign_of_life(start: Start) -> None:
    """D04: they come between two requests, where uvicorn only looks whether anything comes. Seen red without the deadline for
    bytes that begin nothing."""
    address = start(head_s=1.0)
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"}" not in connection.recv(65536):
            pass
        until = time.monotonic() + PATIENT_S
        with pytest.raises(OSError):
            while time.monotonic() < until:
                connection.sendall(b"\r\n")
                if select.select([connection], [], [], 0.2)[0] and not connection.recv(100):
                    raise BrokenPipeError
    assert ask(address) == [200]


def test_d04_more_connections_than_allowed_push_out_the_silent(start: Start) -> None:
    """D04: 1,500 sockets that say nothing, long before their deadline. Seen red with _make_room emptied."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        address = start(head_s=3600.0, keep_alive_s=3600, connections=100)
        with connect(address) as worker:
            worker.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            while b"}" not in worker.recv(65536):
                pass
            silent = [connect(address) for _ in range(1500)]
            closed: set[socket.socket] = set()
            until = time.monotonic() + PATIENT_S
            while len(closed) < 1350 and time.monotonic() < until:
                rest = [s for s in silent if s not in closed]
                poll = select.poll()
                by_number = {s.fileno(): s for s in rest}
                for number in by_number:
                    poll.register(number, select.POLLIN | select.POLLHUP)
                closed |= {by_number[n] for n, _ in poll.poll(200)}
            assert len(closed) >= 1350, "no more than 100 are kept"
            assert ask(address) == [200]
            # Who has asked before is not pushed out by those who never did.
            worker.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in worker.recv(65536)
            for connection in silent:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("rest", [b"1\r\na\r\n" * 20, b""], ids=["comes", "stays away"])
def test_d02_a_body_that_nobody_reads_does_not_come_for_ever(start: Start, rest: bytes) -> None:
    """D02: behind a 401. Seen red without the deadline in on_response_complete."""
    address = start(_deaf, head_s=1.0)
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        until = time.monotonic() + PATIENT_S
        got = b""
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                if select.select([connection], [], [], 0.1)[0]:
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    got += piece
                if rest:
                    connection.sendall(rest)
        assert time.monotonic() < until
        assert statuses(got) == [401]


def test_d03_a_trailer_is_no_header(start: Start) -> None:
    """D03. Seen red on 0.1: what came behind the body was in the list of headers that the gate had checked before."""
    address = start()
    with connect(address) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n"
        )
        connection.sendall(b"0\r\nAuthorization: Bearer stolen\r\nX-Trailer: 1\r\nHost: evil.example\r\n\r\n")
        told = json.loads(everything(connection).partition(b"\r\n\r\n")[2])
    assert told["body"] == "hello"
    assert told["headers"] == {"host": "x", "transfer-encoding": "chunked", "connection": "close"}


def test_d03_an_endless_trailer_is_refused(start: Start) -> None:
    """D03. Seen red with the bound on silent bytes removed."""
    address = start()
    with connect(address) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: "
        )
        with contextlib.suppress(OSError):
            for _ in range(32):
                connection.sendall(b"a" * 65536)
        assert statuses(everything(connection)) == [431]


SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 50\r\n",
    "one length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "a list of lengths": b"Content-Length: 5, 5\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "a negative length": b"Content-Length: -5\r\n",
    "an endless length": b"Content-Length: 99999999999999999999999999\r\n",
    "packed chunks": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunks twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "a coding with a tab": b"Transfer-Encoding:\x0bchunked\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a folded line": b"X: 1\r\n Transfer-Encoding: chunked\r\n",
    "a bare return": b"X: 1\rTransfer-Encoding: chunked\r\n",
    "a NUL": b"X: \x00\r\n",
}


@pytest.mark.parametrize("lines", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_d03_what_two_readers_would_read_differently_is_refused(start: Start, lines: bytes) -> None:
    """D03, request smuggling. Seen red on 0.1 for packed chunks and two lengths: the parser takes the last coding and forgets the
    others."""
    address = start()
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + SMUGGLED)
        data = everything(connection)
    assert statuses(data) == [400], data
    assert b"smuggled" not in data


@pytest.mark.parametrize(
    "chunk",
    [
        b"zz\r\nhello\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"-5\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
    ],
)
def test_d03_a_bad_chunk_ends_the_connection(start: Start, chunk: bytes) -> None:
    """D03. Seen red with _refuse closing in silence where a body is under way: the client was told nothing."""
    address = start()
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert statuses(everything(connection)) == [400]


def test_d03_old_requests_have_no_chunks(start: Start) -> None:
    """D03: HTTP/1.0 knows no chunks. Seen red on 0.1, which read them."""
    address = start()
    with connect(address) as connection:
        connection.sendall(b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED)
        assert statuses(everything(connection)) == [400]


def test_d03_a_good_request_is_answered_before_the_bad_one_behind_it(start: Start) -> None:
    """D03. Seen red with _refuse closing where an answer is under way: the first request had no answer."""
    address = start()
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
        assert statuses(everything(connection)) == [200]


def test_d03_what_follows_an_upgrade_is_not_read(start: Start) -> None:
    """D03. Seen red with the connection kept open behind an upgrade: what came then was thrown away for ever."""
    address = start()
    with connect(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        data = everything(connection)
    assert statuses(data) == [200]
