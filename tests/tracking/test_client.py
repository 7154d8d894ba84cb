"""Logging from training code: fast, never fatal, exactly once."""

# ruff: noqa: PT031 - the warning may come from any of the calls
from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mainspring.errors import InvalidInput, Unavailable
from mainspring.lineage import Foundation, Lineage
from mainspring.records.tracking import RunStatus
from mainspring.storage import failpoints
from mainspring.tracking import Tracking, TrackingClient, ingest_spool, spool


@pytest.fixture
def client(tracking: Tracking) -> TrackingClient:
    return TrackingClient(tracking)


def test_a_run_as_a_user_writes_it(client: TrackingClient, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    with client.start_run(experiment="x", name="first", params={"depth": 3, "lr": 0.1}, capture=False) as run:
        for step in range(100):
            run.log_metric("loss", 1 / (step + 1), step=step)
        run.log_metrics({"auc": math.nan, "acc": math.inf}, step=7)
        run.set_tag("who", "me")
        run.log_inputs("v1")
        run.log_artifact(file)
        run.log_artifact(b"bytes", "deep/inner.bin")
        file.write_text("changed afterwards")
    stored = run.record()
    assert stored.status is RunStatus.FINISHED
    assert stored.params == {"depth": "3", "lr": "0.1"}
    assert stored.tags == {"who": "me"}
    assert stored.metrics["loss"].step == 99
    assert math.isnan(stored.metrics["auc"].number)
    assert stored.metrics["acc"].number == math.inf
    assert client.get_metric_history(run=run.id, key="loss").total == 100
    assert [a.path for a in client.list_artifacts(run=run.id).items] == ["deep/inner.bin", "notes.txt"]
    assert b"".join(client.download_artifact(run=run.id, path="notes.txt").chunks) == b"hello"
    assert not list(client.spool.iterdir())


def test_an_exception_marks_the_run_failed_and_flush_stores_at_once(client: TrackingClient) -> None:
    with pytest.raises(ZeroDivisionError), client.start_run(capture=False) as run:
        run.log_metric("x", 1)
        assert run.flush()
        assert run.record().metrics["x"].number == 1.0
        raise ZeroDivisionError
    assert run.record().status is RunStatus.FAILED


def test_what_is_logged_after_a_flush_is_stored_too(client: TrackingClient) -> None:
    """Seen red with the spool of a living run removed once it was shipped: what came after it had no name any more."""
    with client.start_run(capture=False) as run:
        for step in range(5):
            run.log_metric("x", step, step=step)
            assert run.flush()
            assert run.record().metrics["x"].number == step
    assert run.record().status is RunStatus.FINISHED
    assert client.get_metric_history(run=run.id, key="x").total == 5


def test_capture_makes_edges_from_code_and_environment(client: TrackingClient, base: Foundation) -> None:
    with client.start_run(seeds={"numpy": 7}) as run:
        pass
    stored = run.record()
    assert stored.environment is not None
    assert stored.code is not None
    assert stored.source["seeds"] == {"numpy": 7}
    edges = {(e.source, e.kind) for e in Lineage(base).get_origin(ref=f"run:{run.id}").edges}
    assert edges == {(f"code:{stored.code}", "code"), (f"environment:{stored.environment}", "environment")}
    assert b"numpy" in base.objects.read(stored.environment)


def test_params_stand_in_the_client_too(client: TrackingClient) -> None:
    with client.start_run(params={"a": 1}, capture=False) as run:
        run.log_param("a", 1)
        with pytest.raises(InvalidInput, match="param 'a' is '1' already"):
            run.log_param("a", 2)


def test_unstorable_and_very_long_texts_lose_nothing(client: TrackingClient) -> None:
    long = "z" * 300_000
    with client.start_run(
        capture=False, params={"nul\x00": "a\x00b", "long": long}, tags={"s": "\ud800"}
    ) as run:
        pass
    stored = run.record()
    assert stored.params["nul\\x00"] == "a\\x00b"
    assert stored.tags["s"] == "\\ud800"
    assert stored.params["long"].startswith("zzz")
    artifact = client.list_artifacts(run=run.id).items[0]
    assert artifact.path in stored.params["long"]
    assert b"".join(client.download_artifact(run=run.id, path=artifact.path).chunks).decode() == long


def test_two_processes_may_log_into_one_run(client: TrackingClient) -> None:
    with client.start_run(capture=False) as run:
        run.log_metric("a", 1)
        run.flush()
        rank = client.attach(run.id)
        rank.log_metric("b", 2)
        rank.finish()
        assert run.record().status is RunStatus.RUNNING
        pid = os.fork()
        if pid == 0:
            run.log_metric("child", 3)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    assert {k: m.number for k, m in run.record().metrics.items()} == {"a": 1.0, "b": 2.0, "child": 3.0}


def test_a_param_that_another_process_set_differently_costs_nothing_else(client: TrackingClient) -> None:
    with client.start_run(capture=False) as run:
        run.log_param("a", 1)
        run.flush()
        rank = client.attach(run.id)
        with pytest.warns(RuntimeWarning, match="refused"):
            rank.log_params({"a": 2, "b": 3})
            rank.log_metric("m", 1)
            rank.finish()
    stored = run.record()
    assert stored.params == {"a": "1", "b": "3"}
    assert stored.metrics["m"].number == 1.0
    assert "param 'a'" in stored.tags["mainspring.rejected"]
    assert list((client.spool / run.id).glob("rejected-*"))


class _Down:
    """A remote room whose server is away: every call raises what the remote client raises then. Forwards when up."""

    def __init__(self, tracking: Tracking) -> None:
        self.tracking, self.up = tracking, False

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(**arguments: object) -> object:
            if not self.up:
                raise Unavailable("no answer")
            return getattr(self.tracking, name)(**arguments)

        return call


def test_t11_training_goes_on_without_a_server_and_nothing_is_lost(
    tracking: Tracking, tmp_path: Path
) -> None:
    """T11: seen red with an outage treated like a rejection (the batch given up)."""
    down = _Down(tracking)
    client = TrackingClient(down, spool=tmp_path / "spool")  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match="not everything is stored yet"):
        run = client.start_run(capture=False)
        slowest = 0.0
        for i in range(2000):
            began = time.perf_counter()
            run.log_metric("x", i, step=i)
            slowest = max(slowest, time.perf_counter() - began)
        assert not run.finish(flush_s=0.2)
    assert tracking.search_runs().items == []
    down.up = True
    run._thread.join(60)
    assert tracking.get_run(run=run.id).status is RunStatus.FINISHED
    assert tracking.get_metric_history(run=run.id, key="x").total == 2000
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.filterwarnings(
    "ignore:.*the store is not reachable:RuntimeWarning"
)  # on a slow machine it tries often
def test_a_spool_of_several_batches_is_stored_whole(tracking: Tracking, tmp_path: Path) -> None:
    """More points than one call takes, at once. Seen red with shipping going on behind the record that follows a full batch."""
    down = _Down(tracking)
    client = TrackingClient(down, spool=tmp_path / "spool")  # type: ignore[arg-type]
    rounds = 2 * spool.MAX_POINTS // 500 + 3
    with pytest.warns(RuntimeWarning, match="not everything is stored yet"):
        run = client.start_run(capture=False)
        for step in range(rounds):
            run.log_metrics({f"m{i}": step for i in range(500)}, step=step)
        assert not run.finish(flush_s=0.2)
    down.up = True
    run._thread.join(120)
    stored = tracking.get_run(run=run.id)
    assert stored.status is RunStatus.FINISHED
    assert {m.number for m in stored.metrics.values()} == {rounds - 1.0}
    assert {tracking.get_metric_history(run=run.id, key=f"m{i}").total for i in (0, 499)} == {rounds}


def test_a_full_disk_degrades_warns_once_and_marks_the_run(client: TrackingClient) -> None:
    """Seen red with the `except` of `_append` removed: the training died."""
    run = client.start_run(capture=False)
    run.log_metric("before", 1)
    run.flush()
    failpoints.arm("journal.append:enospc")
    try:
        with pytest.warns(RuntimeWarning, match="training goes on") as seen:
            for i in range(100):
                run.log_metric("lost", i, step=i)
    finally:
        failpoints.arm("")
    assert len(seen) == 1
    run._retry_at = 0.0
    run.log_metric("after", 1)
    run.finish()
    stored = run.record()
    assert set(stored.metrics) == {"before", "after"}
    assert "lost 100 log calls" in stored.tags["mainspring.degraded"]


def test_a_failed_fsync_does_not_end_the_training(client: TrackingClient) -> None:
    run = client.start_run(capture=False)
    run.log_metric("x", 1)
    failpoints.arm("journal.sync:eio")
    try:
        run.finish()
    finally:
        failpoints.arm("")
    assert run.record().metrics["x"].number == 1.0


_CHILD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import found
from mainspring.tracking import Tracking, TrackingClient
base = found(Path({home!r}))
run = TrackingClient(Tracking(base)).start_run(capture=False, experiment="child")
print(run.id, flush=True)
i = 0
while True:
    run.log_metric("x", i, step=i); i += 1
    if i % 500 == 0: print(i, flush=True)
    if i % 50 == 0: time.sleep(0.001)
"""


def test_t12_a_killed_run_shows_as_crashed_and_its_data_arrives(
    base: Foundation, client: TrackingClient
) -> None:
    """T12, T01 (client): kill -9 in the middle; everything acknowledged by a log call is stored once."""
    code = _CHILD.format(tests=str(Path(__file__).parent), home=str(base.home))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        run = child.stdout.readline().strip()
        acked = 0
        while acked < 4000:
            acked = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    for _ in range(2):  # the second time there is nothing left
        client.recover()
    history = client.get_metric_history(run=run, key="x", limit=100_000)
    assert [m.step for m in history.items] == list(range(history.total))
    assert history.total >= acked
    with base.store.write() as tx:
        tx.execute("UPDATE runs SET alive_until_us = 1 WHERE id = ?", run)
    assert client.operations.get_run(run=run).status is RunStatus.CRASHED
    assert not (client.spool / run).exists()


def test_a_living_process_is_left_alone(client: TrackingClient) -> None:
    run = client.start_run(capture=False)
    run.log_metric("x", 1)
    assert ingest_spool(client.spool, client.operations) == {}  # type: ignore[arg-type]
    assert (client.spool / run.id).exists()
    run.finish()


def test_a_run_that_nobody_finished_ends_with_the_program(base: Foundation, client: TrackingClient) -> None:
    code = (
        _CHILD.format(tests=str(Path(__file__).parent), home=str(base.home)).split("i = 0")[0]
        + "run.log_metric('x', 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    stored = client.operations.get_run(run=done.stdout.strip())
    assert stored.status is RunStatus.FINISHED
    assert stored.metrics["x"].number == 1.0


@pytest.mark.parametrize(
    "point",
    [
        "spool.shipped",
        "spool.removed",
        "tracking.batch_marked",
        "tracking.batch_stored",
        "sql.before_commit",
        "sql.after_commit",
    ],
)
def test_t02_a_kill_at_each_point_of_shipping_stores_everything_once(
    base: Foundation, client: TrackingClient, point: str
) -> None:
    """T02 (shipping): seen red with the batch id made of the clock instead of the place in the journal."""
    code = _CHILD.format(tests=str(Path(__file__).parent), home=str(base.home)).split("i = 0")[0] + (
        "run.flush()\nfrom mainspring.storage import failpoints\n"
        f"failpoints.arm('{point}:kill')\n"
        "for i in range(100): run.log_metric('x', i, step=i)\n"
        "run.finish()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    client.recover()
    run = done.stdout.strip()
    assert [m.step for m in client.get_metric_history(run=run, key="x").items] == list(range(100))
    assert not (client.spool / run).exists()
