"""Consumers that die, lose their lease, share the work with other processes, or have a web server that comes and goes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mainspring.lineage import Foundation, Lineage
from mainspring.lineage.consumers import Consumer, Consumers, Pump
from mainspring.records.events import EventKind
from mainspring.records.lineage import Event

LIMIT_S = 120.0
"""How long a test waits for what must happen; much longer than it takes."""

_PROCESS = """
import os, sys
from pathlib import Path
from mainspring.clock import SystemClock
from mainspring.lineage import Foundation, Ledger
from mainspring.lineage.consumers import Consumer, Consumers
from mainspring.records.events import EventKind
from mainspring.storage.leases import Leases
from mainspring.storage.sql import open_store
store = open_store(sys.argv[1], home=Path(sys.argv[2]))
clock = SystemClock()
base = Foundation(project="default", home=Path(sys.argv[2]), store=store, objects=None, ledger=Ledger(store, project="default", clock=clock),
                  leases=Leases(store), clock=clock)
"""

_DELIVER = """
out = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def handler(events):
    os.write(out, "".join(f"{e.seq}\\n" for e in events).encode())
consumers = Consumers(base, [Consumer("c", handler, start="beginning", batch=5)], lease_ttl_s=1.0)
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
def cursor():
    with store.read() as tx:
        return tx.scalar("SELECT cursor FROM consumers")
while cursor() < int(sys.argv[4]):
    consumers.run_once()
store.close()
"""

_RECORD = """
import random, time
for number in range(int(sys.argv[3])):
    with base.ledger.decision() as d:
        d.event(EventKind.RUN_USED, "run:1", {"by": os.getpid()})
        time.sleep(random.random() * 0.004)
store.close()
"""


def process(
    source: str, base: Foundation, url: str, *args: object, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROCESS + source, url, str(base.home), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def base(foundation_on_each_engine: Foundation) -> Foundation:
    return foundation_on_each_engine


def record(base: Foundation, count: int = 1) -> None:
    for _ in range(count):
        with base.ledger.decision() as d:
            d.event(EventKind.RUN_USED, "run:1")


def cursor(base: Foundation) -> int:
    return Lineage(base).list_consumers()[0].cursor


def wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, f"not in {LIMIT_S:.0f} s: {what}"
        time.sleep(0.01)


# --- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "done"), [("consumers.delivered", 0), ("consumers.moved", 5)], ids=["delivered", "moved"]
)
def test_a_killed_process_loses_nothing(
    base: Foundation, store_url: str, tmp_path: Path, where: str, done: int
) -> None:
    """kill -9 between handler and cursor: delivered again. Seen red with the cursor moved first (a mutant)."""
    record(base, 12)
    out = tmp_path / "out"
    dying = process(_DELIVER, base, store_url, out, 12, MAINSPRING_FAILPOINTS=f"{where}:kill")
    dying.communicate("go\n", timeout=LIMIT_S)
    assert dying.returncode == -9
    assert out.read_text().split() == ["1", "2", "3", "4", "5"]
    assert cursor(base) == done
    heir = process(_DELIVER, base, store_url, out, 12)
    heir.communicate("go\n", timeout=LIMIT_S)
    assert heir.returncode == 0
    assert out.read_text().split()[5:] == [str(n) for n in range(done + 1, 13)]


def test_of_two_processes_one_delivers(base: Foundation, store_url: str, tmp_path: Path) -> None:
    """Seen red without the lease: most events came twice."""
    record(base, 60)
    out = tmp_path / "out"
    both = [process(_DELIVER, base, store_url, out, 60) for _ in range(2)]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in both:
        one.communicate(timeout=LIMIT_S)
        assert one.returncode == 0
    assert out.read_text().split() == [str(n) for n in range(1, 61)]


def test_concurrent_writers_leave_nothing_behind_the_cursor(base: Foundation, store_url: str) -> None:
    """Whoever sees an event sees all before it: numbers are given under the lock of the chain's head, so their order is the order
    of commits. Seen red on PostgreSQL with numbers from a sequence: events were committed behind the cursor and never came."""
    seqs: list[int] = []
    consumers = Consumers(base, [Consumer("c", lambda events: seqs.extend(e.seq for e in events))])
    writers = [process(_RECORD, base, store_url, 40) for _ in range(4)]
    while any(w.poll() is None for w in writers):
        consumers.run_once()
    for writer in writers:
        writer.communicate(timeout=LIMIT_S)
        assert writer.returncode == 0
    consumers.run_once()
    assert seqs == list(range(1, 161))


# --- leases ------------------------------------------------------------------------------------------------------------


def expire(base: Foundation) -> None:
    with base.store.write() as tx:
        tx.execute("UPDATE leases SET expires_us = 0 WHERE name = 'consumer:default:c'")


def test_a_fenced_consumer_moves_no_cursor(base: Foundation) -> None:
    """A process stands still while its lease runs out. Seen red without the check of the token (a mutant)."""

    def slow(_events: Sequence[Event]) -> None:
        expire(base)
        base.leases.acquire("consumer:default:c", holder="another", ttl_s=60)

    consumers = Consumers(base, [Consumer("c", slow, batch=2)])
    record(base, 3)
    consumers.run_once()
    assert cursor(base) == 0


def test_a_fenced_consumer_does_not_undo_what_another_did(base: Foundation) -> None:
    got: list[tuple[str, int]] = []
    second = Consumers(base, [Consumer("c", lambda es: got.extend(("second", e.seq) for e in es), batch=2)])

    def slow(events: Sequence[Event]) -> None:
        got.extend(("first", e.seq) for e in events)
        expire(base)
        second.run_once()

    first = Consumers(base, [Consumer("c", slow, batch=2)])
    record(base, 3)
    first.run_once()
    assert got == [("first", 1), ("first", 2), ("second", 1), ("second", 2), ("second", 3)]
    record(base)
    second.run_once()
    assert got[-1] == ("second", 4), "it went on from where the second one was"
    assert cursor(base) == 4


def test_a_slow_handler_keeps_its_lease(base: Foundation) -> None:
    """Seen red without renewing: the other one took it over, and so on for ever."""
    others: list[int] = []
    other = Consumers(base, [Consumer("c", lambda es: others.extend(e.seq for e in es))], lease_ttl_s=0.2)

    def lease() -> int:
        with base.store.read() as tx:
            return int(tx.scalar("SELECT expires_us FROM leases WHERE name = 'consumer:default:c'"))

    def slow(_events: Sequence[Event]) -> None:
        before = lease()
        wait_for(lambda: lease() > before + 3_000_000, "the lease is renewed")
        other.run_once()

    record_one = Consumers(base, [Consumer("c", slow)], lease_ttl_s=3.0)
    record(base, 2)
    assert record_one.run_once() == 2
    assert (others, cursor(base)) == ([], 2)


# --- the pump, and a web server at the other end -----------------------------------------------------------------------


class Target:
    """A web server that takes events as JSON; ``mode`` says how it behaves. It can die and come back at its address."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.requests = 0
        self.mode = "well"
        self.released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def come(self) -> None:
        target = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                target.requests += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if target.mode == "slow":
                    target.released.wait(LIMIT_S)
                if target.mode != "well":
                    self.close_connection = True
                    if target.mode == "failing":
                        self.send_error(500)
                    return
                target.taken += body
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Answer)
        self._server.daemon_threads = False  # closing waits for them
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def go(self) -> None:
        if self._server is not None:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def handler(self, events: Sequence[Event]) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/", data=json.dumps([e.seq for e in events]).encode(), method="POST"
        )
        try:
            urllib.request.urlopen(request, timeout=0.5).close()
        except urllib.error.HTTPError as error:
            error.close()
            raise


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    made.come()
    yield made
    made.go()


def test_a_web_server_that_fails_is_slow_dies_and_comes_back_gets_everything(
    base: Foundation, target: Target
) -> None:
    """Seen red with a consumer that goes on after the first failure: what was recorded meanwhile never came."""
    fast = Consumer("c", target.handler, attempts=1_000_000, backoff_s=0.02, max_backoff_s=0.05, batch=4)
    with Pump(Consumers(base, [fast]), every_s=0.02) as pump:
        record(base, 3)
        pump.wake()
        wait_for(lambda: cursor(base) == 3, "all is well")
        for mode in ("failing", "slow"):
            target.mode, before = mode, target.requests
            record(base, 6)
            wait_for(lambda: target.requests >= before + 3, f"it is tried again while it is {mode}")  # noqa: B023 - waits here
        failing = Lineage(base).list_consumers()[0]
        assert failing.failing_since is not None
        assert failing.waiting == 12
        target.go()
        record(base, 6)
        wait_for(lambda: "refused" in str(Lineage(base).list_consumers()[0].error), "the server is away")
        target.mode = "well"
        target.come()
        wait_for(lambda: cursor(base) == 21, "everything arrives")
    assert list(dict.fromkeys(target.taken)) == list(range(1, 22)), (
        "in order, and by its number each can be taken once"
    )
    now = Lineage(base).list_consumers()[0]
    assert (now.error, now.failing_since, now.set_aside) == (None, None, 0)


def test_a_slow_consumer_holds_up_no_other(base: Foundation) -> None:
    """Seen red with one thread for all."""
    hanging, go_on, got = threading.Event(), threading.Event(), []

    def hang(_events: Sequence[Event]) -> None:
        hanging.set()
        assert go_on.wait(LIMIT_S)

    consumers = Consumers(
        base, [Consumer("a", hang), Consumer("b", lambda es: got.extend(e.seq for e in es))]
    )
    with Pump(consumers, every_s=0.05):
        record(base)
        assert hanging.wait(LIMIT_S)
        record(base)
        wait_for(lambda: got == [1, 2], "the other consumer is served")
        go_on.set()


def test_without_consumers_nothing_runs(base: Foundation) -> None:
    before = threading.active_count()
    with Pump(Consumers(base, [])):
        assert threading.active_count() == before


def test_the_pump_goes_on_after_a_database_that_was_away(
    base: Foundation, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    consumers = Consumers(base, [Consumer("c", lambda es: got.extend(e.seq for e in es))])
    with base.store.write() as tx:
        tx.execute("ALTER TABLE chain_heads RENAME TO away")
    with Pump(consumers, every_s=0.05):
        wait_for(lambda: "this turn ended early" in caplog.text, "it says so")
        with base.store.write() as tx:
            tx.execute("ALTER TABLE away RENAME TO chain_heads")
        record(base, 2)
        wait_for(lambda: got == [1, 2], "it goes on")
