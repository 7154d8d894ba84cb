"""Steps begun, kept alive and finished by operations, as a worker anywhere calls them: once, fenced, with checked digests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mainspring.errors import ConfigError, Conflict, Fenced, InvalidInput, NotFound, PermissionDenied
from mainspring.lineage import Foundation, Ledger, Lineage
from mainspring.lineage.uploads import Uploads
from mainspring.operations import Principal, Role, acting
from mainspring.pipelines import Pipelines, Runner, attempts, rows
from mainspring.pipelines.executor import Ended
from mainspring.pipelines.executors import FACTORIES
from mainspring.pipelines.offers import Offers
from mainspring.pipelines.schedule import MAX_LOST, RETURNED
from mainspring.records.pipelines import (
    Artifact,
    Effect,
    ExecutorName,
    PipelineRun,
    StepError,
    StepLease,
    StepResult,
    WaitingStep,
)
from mainspring.storage.sql import Writer

Write = Callable[[str, str], Path]
Begin = Callable[..., Future[PipelineRun]]

LONG_S = 600.0
"""A lease that no test outlives: what is fenced here is fenced by a decision and not by a clock."""

PIPELINE = """
@step
def first() -> bytes:
    return b"made by the worker"

@step(retries=1, backoff=0.0)
def second(x: bytes) -> int:
    return len(x)

@pipeline
def go():
    second(first())
"""


@pytest.fixture
def base(foundation_on_each_engine: Foundation) -> Foundation:
    return foundation_on_each_engine


@pytest.fixture
def ops(base: Foundation) -> Pipelines:
    return Pipelines(base)


@pytest.fixture
def begin(base: Foundation, ops: Pipelines, project: Path, write: Write) -> Iterator[Begin]:
    """Start the pipeline with its steps left to workers; a run that still waits at the end is cancelled."""
    write("p.py", PIPELINE)
    runs: list[Future[PipelineRun]] = []
    with ThreadPoolExecutor(4) as pool:

        def start(environment: str = "e" * 64, lease_ttl_s: float = LONG_S) -> Future[PipelineRun]:
            runner = Runner(
                base, ops, root=project, environment=environment, executor="worker", lease_ttl_s=lease_ttl_s
            )
            runs.append(pool.submit(runner.run, "p.py:go", check=False))
            known = len(runs)
            while len(ops.list_runs().items) < known and not runs[-1].done():
                time.sleep(0.01)
            return runs[-1]

        yield start
        for run in ops.list_runs().items:
            if run.state == "running":
                ops.cancel_run(run=run.id)
        with base.store.write() as tx:  # nobody goes on with what a test has begun
            tx.execute("UPDATE step_offers SET expires_us = 0")
        for future in runs:
            future.exception(60)


def waiting(ops: Pipelines, step: str = "first", *, attempt: int = 1) -> WaitingStep:
    """The step, as soon as this attempt at it waits."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for one in ops.list_waiting_steps():
            tries = [e for e in ops.list_steps(run=one.run, attempts=True) if e.step == step]
            if one.step == step and len(tries) == attempt:
                return one
        time.sleep(0.01)
    raise AssertionError([e for r in ops.list_runs().items for e in ops.list_steps(run=r.id, attempts=True)])


def put(base: Foundation, data: bytes) -> Artifact:
    found = Uploads(base).put(body=[data])
    return Artifact(name="value", kind="bytes", digest=found.digest, size=found.size)


def finish(ops: Pipelines, lease: StepLease, *outputs: Artifact, error: StepError | None = None) -> str:
    result = StepResult(outputs=list(outputs), error=error)
    return ops.finish_step(execution=lease.job.execution, token=lease.token, result=result).state


def take(ops: Pipelines, step: str = "first", *, attempt: int = 1, environment: str = "e" * 64) -> StepLease:
    found = waiting(ops, step, attempt=attempt)
    return ops.begin_step(execution=found.execution, worker="w1", environment=environment)


def test_a_run_is_done_by_operations_alone(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    run = begin()
    lease = take(ops)
    assert (lease.job.step, lease.job.function, lease.ttl_s) == ("first", "p.py:first", LONG_S)
    assert lease.job.files is not None
    files = base.objects.tree(lease.job.files)
    assert list(files) == ["p.py"]  # the code travels by content
    assert ops.heartbeat_step(execution=lease.job.execution, token=lease.token).go_on
    log = Uploads(base).put(body=[b"said by the worker"]).digest
    made = put(base, b"abc")
    result = StepResult(outputs=[made], metrics={"loss": 0.5, "worst": "inf"}, log=log)
    done = ops.finish_step(execution=lease.job.execution, token=lease.token, result=result)
    assert (done.state, done.worker, done.environment, done.metrics) == ("finished", "w1", "e" * 64, result.metrics)  # fmt: skip
    assert b"".join(ops.download_log(run=done.run, step="first").chunks) == b"said by the worker"
    second = take(ops, "second")
    assert [a.digest for s in second.job.sources.values() for a in s.outputs] == [made.digest]
    number = replace_kind(put(base, b"3"), "json")
    finish(ops, second, number)
    ended = run.result(60)
    assert ended.state == "finished"
    assert {e.step: (e.state, e.attempt) for e in ops.list_steps(run=ended.id)} == {"first": ("finished", 1), "second": ("finished", 1)}  # fmt: skip
    # What only the jobs referred to is not kept for their sake.
    with base.store.read() as tx:
        assert tx.all("SELECT owner FROM object_refs WHERE owner LIKE 'job:%'") == []
    assert Lineage(base).verify().ok


def replace_kind(artifact: Artifact, kind: str) -> Artifact:
    import msgspec

    return msgspec.structs.replace(artifact, kind=kind)


def test_a_step_is_begun_by_one_worker(ops: Pipelines, begin: Begin) -> None:
    begin()
    lease = take(ops)
    with pytest.raises(Conflict, match="it is running"):
        ops.begin_step(execution=lease.job.execution, worker="w2")
    assert ops.list_waiting_steps() == []


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)  # SQLite has one writer at a time
def test_taking_waits_for_who_withdraws(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    """Seen red without the lock in attempts.take_offer: PostgreSQL ended one of the two for a deadlock."""
    begin()
    found = waiting(ops)
    with ThreadPoolExecutor(1) as pool:
        with base.store.write() as tx:
            attempts._read_offer(tx, base.project, found.execution, lock=True)
            taking = pool.submit(ops.begin_step, execution=found.execution, worker="w1")
            until = time.monotonic() + 60
            while not tx.scalar(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
            ):
                assert time.monotonic() < until
                time.sleep(0.01)
            tx.execute("UPDATE step_executions SET worker = worker WHERE id = ?", found.execution)
        assert taking.result(60).job.execution == found.execution


def test_finishing_again_answers_what_was_committed(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    begin()
    lease = take(ops)
    assert finish(ops, lease, put(base, b"one")) == "finished"
    assert finish(ops, lease, put(base, b"another")) == "finished"
    done = next(e for e in ops.list_steps(run=lease.job.run) if e.step == "first")
    assert base.objects.read(done.outputs[0].digest) == b"one"
    told = Lineage(base).list_events(kind="step.finished").items
    assert [e.subject for e in told] == [f"step:{done.id}"]


def test_a_wrong_token_is_refused(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    """Seen red without the comparison in attempts._read_held_offer: anybody's result was taken."""
    begin()
    found = waiting(ops)
    for token in ("", "x"):  # nobody has begun it yet: the empty token is no token
        with pytest.raises(Fenced):
            ops.heartbeat_step(execution=found.execution, token=token)
    lease = ops.begin_step(execution=found.execution, worker="w1")
    result = StepResult(outputs=[put(base, b"x")])
    for token in ("", "x", lease.token[:-1]):
        with pytest.raises(Fenced):
            ops.finish_step(execution=found.execution, token=token, result=result)
        with pytest.raises(Fenced):
            ops.heartbeat_step(execution=found.execution, token=token)
    assert {e.step: e.state for e in ops.list_steps(run=found.run)}["first"] == "running"
    with pytest.raises(NotFound):
        ops.finish_step(execution=found.run, token=lease.token, result=result)


def test_a_worker_that_is_not_heard_of_has_lost_its_step(
    base: Foundation, ops: Pipelines, begin: Begin
) -> None:
    """Seen red without the state in attempts.finish_attempt: the stale worker's result stood beside the new one's."""
    run = begin(lease_ttl_s=1.0)
    stale = take(ops)  # no heartbeat follows
    fresh = take(ops, attempt=2)
    with pytest.raises(Fenced, match="not yours any more: it is lost"):
        finish(ops, stale, put(base, b"stale"))
    with pytest.raises(Fenced):
        ops.heartbeat_step(execution=stale.job.execution, token=stale.token)
    # On this machine a second may pass between two calls: the attempt that is finished is whichever is current.
    finished, attempt = _finish_before_lost(ops, fresh, put(base, b"fresh"))
    states = [e.state for e in ops.list_steps(run=fresh.job.run, attempts=True) if e.step == "first"]
    assert states == ["lost"] * (attempt - 1) + ["finished"]
    done = next(e for e in ops.list_steps(run=fresh.job.run) if e.step == "first")
    assert base.objects.read(done.outputs[0].digest) == b"fresh"
    assert [e.subject for e in Lineage(base).list_events(kind="step.finished").items] == [f"step:{finished}"]
    ops.cancel_run(run=fresh.job.run)
    assert run.result(60).state in {"cancelled", "failed"}


def test_a_heartbeat_after_the_runner_has_looked_keeps_the_attempt(
    base: Foundation, ops: Pipelines, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red without the state in drive._commit: the step counted as finished, without outputs."""
    poll, looking, heard = Offers.poll, threading.Event(), threading.Event()

    def late(self: Offers, *, wait_s: float) -> list[Ended]:
        looking.set()
        ended = poll(self, wait_s=wait_s)
        if ended and not heard.is_set():
            assert ops.heartbeat_step(execution=ended[0].execution, token=lease.token).go_on
            heard.set()
        return ended

    begin()
    lease = take(ops)
    monkeypatch.setattr(Offers, "poll", late)
    assert looking.wait(60)
    with base.store.write() as tx:
        tx.execute("UPDATE step_offers SET expires_us = 0")
    assert heard.wait(60)
    made = put(base, b"abc")
    assert finish(ops, lease, made) == "finished"
    second = take(ops, "second")
    assert [a.digest for s in second.job.sources.values() for a in s.outputs] == [made.digest]
    assert [e.state for e in ops.list_steps(run=second.job.run, attempts=True)] == ["finished", "running"]


def _finish_before_lost(ops: Pipelines, lease: StepLease, made: Artifact) -> tuple[str, int]:
    while True:
        try:
            finish(ops, lease, made)
        except Fenced:
            lease = take(ops, attempt=lease.job.attempt + 1)
        else:
            return lease.job.execution, lease.job.attempt


def test_a_step_that_loses_every_worker_fails(ops: Pipelines, begin: Begin) -> None:
    """Seen red without the bound in schedule.record_failure: it was offered for ever."""
    run = begin(lease_ttl_s=0.2)
    for attempt in range(1, MAX_LOST + 1):
        take(ops, attempt=attempt)
    ended = run.result(120)
    assert (ended.state, ended.failed_step) == ("failed", "first")
    assert ended.error is not None
    assert ended.error.kind == "lost"
    assert "worker w1 was not heard of" in ended.error.message


def test_a_step_given_back_waits_again_however_often(ops: Pipelines, begin: Begin) -> None:
    begin()
    back = StepError(kind="lost", type=RETURNED, message="the worker was stopped")
    for attempt in range(1, MAX_LOST + 3):
        assert finish(ops, take(ops, attempt=attempt), error=back) == "lost"
    waiting(ops, attempt=MAX_LOST + 3)


def test_an_attempt_that_another_transaction_ends_first_is_not_ended_again(
    base: Foundation, ops: Pipelines, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on PostgreSQL, where a run may be taken over after ``finish`` has read the state. Seen red without the state in
    state.end_execution: the lost attempt was finished."""
    begin()
    lease, made = take(ops), put(base, b"abc")
    facts = attempts._read_facts

    def overtaken(tx: Writer, project: str, found: attempts._Offer) -> attempts.Facts:
        rows.lose_running(tx, project, lease.job.run)
        return facts(tx, project, found)

    with monkeypatch.context() as patched:
        patched.setattr(attempts, "_read_facts", overtaken)
        with pytest.raises(Fenced, match="it is lost"):
            finish(ops, lease, made)
    assert finish(ops, lease, made) == "finished"  # nothing of that transaction was kept


def test_a_failure_is_retried_as_often_as_the_step_says(
    base: Foundation, ops: Pipelines, begin: Begin
) -> None:
    run = begin()
    finish(ops, take(ops), put(base, b"abc"))
    bad = StepError(kind="exception", type="ValueError", message="no such luck")
    for attempt in (1, 2):
        assert finish(ops, take(ops, "second", attempt=attempt), error=bad) == "failed"
    ended = run.result(60)
    assert (ended.state, ended.failed_step, ended.error) == ("failed", "second", bad)


def test_a_cancel_reaches_who_waits_and_who_runs(ops: Pipelines, begin: Begin) -> None:
    run = begin()
    lease = take(ops)
    ops.cancel_run(run=lease.job.run)
    beat = ops.heartbeat_step(execution=lease.job.execution, token=lease.token)
    assert (beat.go_on, beat.reason) == (False, "the run was cancelled")
    assert finish(ops, lease, error=StepError(kind="cancelled", type="", message="stopped")) == "cancelled"
    assert run.result(60).state == "cancelled"
    other = begin()
    found = waiting(ops)
    ops.cancel_run(run=found.run)
    with pytest.raises(Conflict):
        ops.begin_step(execution=found.execution, worker="w1")
    assert other.result(60).state == "cancelled"
    assert {e.step: e.state for e in ops.list_steps(run=found.run)} == {
        "first": "cancelled",
        "second": "skipped",
    }


def test_a_digest_of_another_project_is_refused(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    """Seen red without check_owned in arrivals.check_result: the bytes of the other project could be read then."""
    other = replace(base, project="other", ledger=Ledger(base.store, project="other", clock=base.clock))
    theirs, tree = (
        put(other, b"theirs"),
        Uploads(other).create_tree(files={"a": Uploads(other).put(body=[b"a"])}),
    )
    forged = Uploads(base).put(body=[base.objects.read(tree.digest)])  # bytes that list what others own
    begin()
    lease = take(ops)
    results = [
        StepResult(outputs=[theirs]),
        StepResult(outputs=[Artifact(name="value", kind="tree", digest=tree.digest, size=tree.size)]),
        StepResult(outputs=[Artifact(name="value", kind="tree", digest=forged.digest, size=forged.size)]),
        StepResult(outputs=[put(base, b"x")], log=theirs.digest),
        StepResult(
            outputs=[put(base, b"x")],
            effects=[
                Effect(
                    kind="artifact",
                    ref=f"object:{theirs.digest}",
                    data={"run": None, "path": "p", "digest": theirs.digest, "size": theirs.size},
                )
            ],
        ),
    ]
    for result in results:
        with pytest.raises(NotFound):
            ops.finish_step(execution=lease.job.execution, token=lease.token, result=result)
    assert {e.step: e.state for e in ops.list_steps(run=lease.job.run)}["first"] == "running"
    with pytest.raises(NotFound):
        Uploads(base).get(digest=theirs.digest)


def test_what_no_step_can_come_to_is_refused(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    begin()
    lease, good = take(ops), put(base, b"x")
    for result in (
        StepResult(outputs=[good], shape="ring"),
        StepResult(outputs=[good, good], shape="tuple"),
        StepResult(outputs=[], shape="single"),
        StepResult(outputs=[good], metrics={"loss": "many"}),
        StepResult(outputs=[good], used=["nothing"]),
        StepResult(outputs=[good], effects=[Effect(kind="alias", ref="alias:m@a", data={"model": "m"})]),
        StepResult(outputs=[good], error=StepError(kind="exit", type="", message="")),
    ):
        with pytest.raises(InvalidInput):
            ops.finish_step(execution=lease.job.execution, token=lease.token, result=result)


@pytest.mark.parametrize("name", ["../up", "..", "a/b", "a\0b", "n" * 256])
def test_an_output_cannot_be_named_into_another_folder(
    base: Foundation, ops: Pipelines, begin: Begin, name: str
) -> None:
    """Where it is the input of a next step, it becomes a path. Seen red without _is_name in arrivals: the result was committed."""
    begin()
    lease, good = take(ops), put(base, b"x")
    bad = Artifact(name="value", kind="file", digest=good.digest, size=good.size, type=name)
    with pytest.raises(InvalidInput, match="not the name of a file"):
        finish(ops, lease, bad)


def test_a_step_of_another_project_is_not_there(base: Foundation, ops: Pipelines, begin: Begin) -> None:
    begin()
    found = waiting(ops)
    other = Pipelines(
        replace(base, project="other", ledger=Ledger(base.store, project="other", clock=base.clock))
    )
    assert other.list_waiting_steps() == []
    with pytest.raises(NotFound):
        other.begin_step(execution=found.execution, worker="w")
    lease = ops.begin_step(execution=found.execution, worker="w")
    with pytest.raises(NotFound):
        other.heartbeat_step(execution=found.execution, token=lease.token)
    with pytest.raises(NotFound):
        other.finish_step(
            execution=found.execution,
            token=lease.token,
            result=StepResult(error=StepError(kind="exit", type="", message="")),
        )


def test_a_viewer_takes_no_step(ops: Pipelines, begin: Begin) -> None:
    begin()
    found = waiting(ops)
    with acting(Principal("reader", {"default": Role.VIEWER})):
        for call in (
            ops.list_waiting_steps,
            lambda: ops.begin_step(execution=found.execution, worker="w"),
            lambda: ops.heartbeat_step(execution=found.execution, token=""),
            lambda: ops.finish_step(execution=found.execution, token="", result=StepResult()),
        ):
            with pytest.raises(PermissionDenied):
                call()


def test_a_result_from_another_environment_serves_this_run_only(
    base: Foundation, ops: Pipelines, begin: Begin, project: Path
) -> None:
    """Seen red without the comparison in attempts._read_facts: a run elsewhere took it for a result of its own environment."""
    begin()
    lease = take(ops, environment="f" * 64)
    finish(ops, lease, put(base, b"abc"))
    take(ops, "second")  # it serves the run
    why = Runner(base, ops, root=project, environment="e" * 64).plan("p.py:go")[0]
    assert not why.hit
    assert why.reason == "it ran in another environment, ffffffffffff, at worker w1"
    causes = {n.ref for n in Lineage(base).get_origin(ref=f"step:{lease.job.execution}").nodes}
    assert f"environment:{'f' * 64}" in causes


def test_what_is_under_way_when_the_runner_goes_is_lost_to_its_worker(
    base: Foundation, ops: Pipelines, begin: Begin, project: Path
) -> None:
    begin(lease_ttl_s=LONG_S)
    lease = take(ops)
    with base.store.write() as tx:  # another runner takes the run over, as after a crash
        tx.execute("UPDATE leases SET token = token + 1, expires_us = 0 WHERE name LIKE 'pipeline-run:%'")
    with base.ledger.decision() as d:
        rows.reopen_run(d, base.project, lease.job.run)
    with pytest.raises(Fenced):
        finish(ops, lease, put(base, b"late"))
    with base.store.read() as tx:
        assert tx.all("SELECT owner FROM object_refs WHERE owner LIKE 'job:%'") == []


def test_a_resumed_run_has_what_a_worker_finished_meanwhile(
    base: Foundation, ops: Pipelines, begin: Begin, project: Path
) -> None:
    run = begin()
    lease = take(ops)
    with base.store.write() as tx:  # the runner is gone, as after kill -9
        tx.execute("UPDATE leases SET token = token + 1, expires_us = 0 WHERE name LIKE 'pipeline-run:%'")
    assert finish(ops, lease, put(base, b"made without a runner")) == "finished"
    assert isinstance(run.exception(60), Fenced)
    resumed = Runner(base, ops, root=project, environment="e" * 64).resume(lease.job.run)
    assert resumed.state == "finished"
    tries = ops.list_steps(run=resumed.id, attempts=True)
    assert [(e.step, e.state, e.worker) for e in tries] == [
        ("first", "finished", "w1"),
        ("second", "finished", ""),
    ]
    assert base.objects.read(tries[1].outputs[0].digest) == b"21"


def test_executors_are_a_table(base: Foundation, ops: Pipelines, project: Path) -> None:
    import typing

    assert set(FACTORIES) == set(typing.get_args(ExecutorName))
    with pytest.raises(ConfigError, match="no such executor") as caught:
        Runner(base, ops, root=project, executor="slurm")
    assert caught.value.next_step == "Known: 'local', 'worker'."
