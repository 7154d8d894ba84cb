"""Traffic against a real inference server over a real socket."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date, timedelta
from urllib.parse import urlsplit

import blake3
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mainspring.demo.ending import count_metrics_requests
from mainspring.demo.traffic import Pool, Traffic
from mainspring.demo.world import NUMBERS, TEXTS, World
from mainspring.models import formats
from mainspring.models.formats.columns import clean
from mainspring.records.base import to_json
from mainspring.records.labels import Feedback, FeedbackCounts
from mainspring.records.models import Column, Signature, Task
from mainspring.records.serving import ROUTES_FILE, Deployment, RouteTable, Target, with_digest

SIGNATURE = Signature(
    inputs=[Column(name=n, type="float64", nullable=True) for n in NUMBERS]
    + [Column(name=n, type="string") for n in TEXTS],
    task=Task.BINARY,
    classes=["on_time", "late"],
)


class Book:
    """The labels room's place, keeping what comes."""

    def __init__(self) -> None:
        self.items: list[Feedback] = []

    def record_feedback(self, items: list[Feedback]) -> FeedbackCounts:
        self.items += items
        return FeedbackCounts(accepted=len(items))


@pytest.fixture(scope="module")
def world() -> World:
    return World.load(seed=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[str]:
    bundle = tmp_path_factory.mktemp("bundle")
    rows = world.of_day(date(2013, 1, 5)).slice(0, 300)
    columns = {n: rows[n].to_pylist() for n in (*NUMBERS, *TEXTS)}
    cleaned = clean(columns, SIGNATURE)
    matrix = np.empty((300, len(cleaned)), dtype=object)
    for j, values in enumerate(cleaned.values()):
        matrix[:, j] = values
    numbers = ColumnTransformer([("n", SimpleImputer(), [0, 1])])
    model = make_pipeline(numbers, LogisticRegression()).fit(matrix, np.arange(300) % 2)
    digest = blake3.blake3(b"package").hexdigest()
    formats.save(model, bundle / "packages" / digest, signature=SIGNATURE, sample=columns)
    target = Target(model="delay", version=1, package=digest)
    table = with_digest(
        RouteTable(
            number=1,
            created_us=0,
            deployments=[Deployment(name="delay", signature=SIGNATURE, targets=[target])],
        )
    )
    (bundle / ROUTES_FILE).write_bytes(to_json(table))
    command = [sys.executable, "-m", "mainspring.serving", "--bundle", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def test_a_day_is_answered_and_its_truth_follows_a_day_later(server: str, world: World) -> None:
    book = Book()
    with Pool(server) as pool:
        traffic = Traffic(world, pool, book, labelled=110)
        first = traffic.day(date(2013, 2, 8))  # a snowstorm: many flights never arrived
        assert book.items == []
        second = traffic.day(date(2013, 2, 9))
    requests = world.requests(date(2013, 2, 8), labelled=110)
    assert (first.sent, first.failed, first.labels) == (len(requests), 0, 0)
    assert first.sent > 110
    assert (second.failed, second.labels) == (0, 110)
    known = [r for r in requests if r.late is not None]
    assert [(f.value, f.at) for f in book.items] == [
        (r.late, r.event_time + timedelta(days=1)) for r in known
    ]
    assert len({f.prediction_id for f in book.items}) == 110


class Lossy:
    """A proxy that passes every request on and loses the first answer to each: the client hears nothing, the server counted."""

    def __init__(self, target: str) -> None:
        self._target = (urlsplit(target).hostname or "", urlsplit(target).port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._seen: set[bytes] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._pass, args=(self._listener.accept()[0],), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server, contextlib.suppress(OSError):
            while request := _message(client):
                server.sendall(request)
                answer = _message(server)
                if request not in self._seen:
                    self._seen.add(request)
                    return
                client.sendall(answer)

    def close(self) -> None:
        self._listener.close()


def _message(connection: socket.socket) -> bytes:
    """One whole HTTP message, in however many pieces it comes; nothing if the other side closed."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0 or len(data) < end + 4 + _length(data[:end]):
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        data += piece
    return data


def _length(head: bytes) -> int:
    return next(int(f[15:]) for f in head.lower().split(b"\r\n") if f.startswith(b"content-length:"))


def test_a_lost_answer_is_asked_for_again_and_the_request_counts_once(server: str, world: World) -> None:
    """Seen red without the idempotency key: the server counted twice what was sent once."""
    before = count_metrics_requests(server)
    lossy = Lossy(server)
    with Pool(lossy.url, pauses_s=[0.0, 0.0]) as pool:
        result = Traffic(world, pool, Book(), labelled=3).day(date(2013, 2, 9))
    lossy.close()
    assert result.failed == 0
    assert count_metrics_requests(server) - before == result.sent


def test_a_refused_request_is_counted_and_shown(server: str) -> None:
    with Pool(server) as pool:
        answers = list(pool.posts("/v1/deployments/delay/predict", [b'{"rows": [{}]}', b"nonsense"]))
    assert [400 <= status < 500 for status, _ in answers] == [True, True]


def test_a_server_that_is_gone_fails_the_request_and_not_the_process() -> None:
    with Pool("http://127.0.0.1:9", pauses_s=[0.0]) as pool:
        assert [status for status, _ in pool.posts("/", [b"{}"] * 6)] == [0] * 6
