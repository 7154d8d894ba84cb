"""The airline's systems, as a process of their own: send each day's flights to the inference server, and labels a day later.

``python -m mainspring.demo.traffic --serving URL --control URL --token-file FILE`` reads one date per line on standard
input. For each it first reports the arrivals of the day before to the control plane, then sends that day's requests in
time order, and answers one line of JSON (:class:`DayResult`). It ends when its input does.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from mainspring.labels import Labels
from urllib.parse import urlsplit

import msgspec

from mainspring.demo.world import LABEL_DELAY, Request, World
from mainspring.errors import InvalidInput, Unavailable
from mainspring.records.base import new_id
from mainspring.records.labels import Feedback

PROJECT = "flights"
DEPLOYMENT = "delay"
_TIMEOUT_S = 60.0
_PAUSES_S = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)
_RETRIED = frozenset({0, 429, 503})
"""Statuses after which a request is sent again: no answer (0), or the server has no capacity."""
_MAX_ANSWER = 1 << 20


class DayResult(msgspec.Struct, frozen=True):
    """The result of a day: requests sent, those not answered with 200, and labels sent for the day before."""

    day: date
    sent: int
    failed: int
    labels: int
    errors: list[str] = []


class Pool:
    """A few keep-alive HTTP/1.1 connections over raw sockets; the common Python clients cost ten times the request."""

    def __init__(self, url: str, *, size: int = 4, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise InvalidInput("not an address of a server", value=url, next_step="Use http://host:port.")
        self._address = (parts.hostname, parts.port or 80)
        self._lines = [_Connection(self._address) for _ in range(size)]
        self._pauses_s = pauses_s

    def posts(self, path: str, bodies: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Post the bodies in order, as many at once as there are connections; ``(status, body)`` for each, in order.

        A request that got no answer (status 0: the connection broke, or nothing came in time) or whose server had no capacity
        (429, 503) is sent again under the same idempotency key, so that it counts once.
        """
        for start in range(0, len(bodies), len(self._lines)):
            requests = [self._request(path, body) for body in bodies[start : start + len(self._lines)]]
            answers = self._round(requests)
            for pause in self._pauses_s:
                retried = [i for i, (status, _) in enumerate(answers) if status in _RETRIED]
                if not retried:
                    break
                time.sleep(pause)
                for i, answer in zip(retried, self._round([requests[i] for i in retried]), strict=True):
                    answers[i] = answer
            yield from answers

    def _round(self, requests: Sequence[bytes]) -> list[tuple[int, bytes]]:
        used = self._lines[: len(requests)]
        for line, request in zip(used, requests, strict=True):
            line.send(request)
        return [line.receive() for line in used]

    def _request(self, path: str, body: bytes) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address[0]}\r\nContent-Type: application/json\r\n"
            f"Idempotency-Key: {new_id()}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def close(self) -> None:
        for line in self._lines:
            line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Connection:
    """One connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._rest = b""

    def send(self, data: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=_TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(data)
        except OSError:
            self.close()

    def receive(self) -> tuple[int, bytes]:
        if self._socket is None:
            return 0, b"no connection"
        try:
            return self._answer(self._socket)
        except (OSError, ValueError) as error:
            self.close()
            return 0, str(error).encode()

    def _answer(self, connection: socket.socket) -> tuple[int, bytes]:
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += _receive_more(connection, len(data))
        status, length, closing = _parse_head(data[:end])
        body = data[end + 4 :]
        while len(body) < length:
            body += _receive_more(connection, len(body))
        self._rest = body[length:]
        if closing:
            self.close()
        return status, body[:length]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""


def _receive_more(connection: socket.socket, received: int) -> bytes:
    if received > _MAX_ANSWER:
        msg = "the answer is too long"
        raise ValueError(msg)
    piece = connection.recv(65536)
    if not piece:
        msg = "the connection was closed"
        raise ValueError(msg)
    return piece


def _parse_head(head: bytes) -> tuple[int, int, bool]:
    """``(status, length of the body, whether the connection closes)``."""
    first, *fields = head.decode("latin-1").split("\r\n")
    named = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    if "content-length" not in named:
        msg = "the answer does not say how long it is"
        raise ValueError(msg)
    return (
        int(first.split(" ")[1]),
        int(named["content-length"]),
        named.get("connection", "").lower() == "close",
    )


class Traffic:
    """Sends days. Keeps the prediction ids of flights whose arrival is not known yet."""

    def __init__(self, world: World, pool: Pool, labels: Labels, *, labelled: int = 110) -> None:
        self._world, self._pool, self._labels = world, pool, labels
        self._per_day = labelled
        self._open: list[tuple[str, bool, datetime]] = []

    def day(self, day: date) -> DayResult:
        """Report what became known, then send the day's flights. Raises :class:`Unavailable` if the labels cannot be sent."""
        labels = self._report()
        requests = self._world.requests(day, labelled=self._per_day)
        failed, errors = 0, []
        answers = self._pool.posts(
            f"/v1/deployments/{DEPLOYMENT}/predict", [_encode_request(r) for r in requests]
        )
        for request, (status, body) in zip(requests, answers, strict=True):
            if status != 200:
                failed += 1
                errors.append(f"{status} {body[:200].decode('utf-8', 'replace')}")
            elif request.late is not None:
                ident: str = msgspec.json.decode(body)["prediction_id"]
                self._open.append((ident, request.late, request.event_time + LABEL_DELAY))
        return DayResult(day=day, sent=len(requests), failed=failed, labels=labels, errors=errors[:5])

    def report(self) -> DayResult:
        """Only report what became known; nothing is sent. For the end of the year."""
        return DayResult(day=date.max, sent=0, failed=0, labels=self._report())

    def _report(self) -> int:
        arrived, self._open = self._open, []
        items = [
            Feedback(prediction_id=ident, value=late, at=at, source="arrivals") for ident, late, at in arrived
        ]
        if items:
            counts = self._labels.record_feedback(items)
            if counts.rejected:
                raise Unavailable(f"{counts.rejected} labels were rejected", place="feedback")
        return len(items)


def _encode_request(request: Request) -> bytes:
    return msgspec.json.encode(
        {
            "rows": [request.inputs],
            "event_time": request.event_time.isoformat(),
            "key": f"flight-{request.flight_id}",
        }
    )


def run(traffic: Traffic, lines: Iterable[str], out: Any) -> None:
    """A date per line in, a result per line out."""
    for line in lines:
        word = line.strip()
        result = traffic.report() if word == "report" else traffic.day(date.fromisoformat(word))
        out.write(msgspec.json.encode(result).decode() + "\n")
        out.flush()


def main(arguments: list[str] | None = None) -> None:
    """The process; the module's docstring describes its arguments."""
    from mainspring.remote import RemoteWorkspace

    parser = argparse.ArgumentParser(prog="python -m mainspring.demo.traffic")
    parser.add_argument("--serving", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", type=int, default=110)
    options = parser.parse_args(arguments)
    token = options.token_file.read_text().strip()
    world = World.load(seed=options.seed)
    with (
        RemoteWorkspace(options.control, token=token, project=PROJECT) as remote,
        Pool(options.serving) as pool,
    ):
        run(Traffic(world, pool, remote.labels, labelled=options.labelled), sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
