"""Runs on a real workspace: results, parallel branches, failures, retries, logs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from mainspring.errors import Conflict, Fenced, StepFailed
from mainspring.lineage import Foundation, Lineage
from mainspring.operations import operations_of
from mainspring.pipelines import Pipelines, Runner
from mainspring.records.base import from_json
from mainspring.records.pipelines import PipelineEvent

Write = Callable[[str, str], Path]


def value_of(foundation: Foundation, ops: Pipelines, run: str, step: str, output: str = "value") -> object:
    execution = next(e for e in ops.list_steps(run=run) if e.step == step)
    return from_json(foundation.objects.read(next(o.digest for o in execution.outputs if o.name == output)))


def states(ops: Pipelines, run: str) -> dict[str, str]:
    return {e.step: e.state for e in ops.list_steps(run=run)}


def test_a_chain_runs_and_its_second_run_is_cached(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write
) -> None:
    write(
        "p.py",
        """
@step
def one(x: int) -> int:
    print("hello from one")
    return x + 1

@step(isolation="inline")
def two(x: int, y: int) -> dict[str, int]:
    return {"sum": x + y}

@pipeline
def add(x: int = 1):
    a = one(x)
    return two(a, a)
""",
    )
    run = runner.run("p.py:add", {"x": "41"})
    assert run.state == "finished"
    assert value_of(foundation, ops, run.id, "two") == {"sum": 84}
    assert b"hello from one" in b"".join(ops.download_log(run=run.id, step="one").chunks)
    again = runner.run("p.py:add", {"x": 41})
    assert states(ops, again.id) == {"one": "cached", "two": "cached"}
    assert ops.explain_step(run=again.id, step="one").hit
    assert [w.hit for w in runner.plan("p.py:add", {"x": 41})] == [True, True]
    assert [w.hit for w in runner.plan("p.py:add", {"x": 2})] == [False, None]


def test_outputs_of_every_kind_travel_by_reference(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write, project: Path
) -> None:
    (project / "raw").mkdir()
    (project / "raw" / "a.txt").write_text("abc")
    write(
        "kinds.py",
        """
import math
from pathlib import Path
from typing import NamedTuple
import msgspec
import numpy as np
import pyarrow as pa
from mainspring.pipelines import context

class Split(NamedTuple):
    train: pa.Table
    test: np.ndarray

class Note(msgspec.Struct, frozen=True):
    text: str
    n: int

@step
def split(folder: Path) -> Split:
    text = (folder / "a.txt").read_text()
    return Split(pa.table({"x": [1, 2, len(text)]}), np.arange(3.0))

@step
def note(t: pa.Table, a: np.ndarray) -> Note:
    return Note(text="n", n=t["x"].to_pylist()[2] + int(a.sum()))

@step(outputs=("raw", "files"))
def pack(n: Note, whole: Split):
    assert isinstance(n, Note) and isinstance(whole, Split)
    folder = context.current().scratch / "package"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "m.json").write_text(str(n.n))
    context.current().log_metric("loss", math.nan)
    return {"raw": b"\\x00\\xff", "files": folder}

@step
def read(raw: bytes, files: Path) -> list[float]:
    return [len(raw), int((files / "deep" / "m.json").read_text()), math.inf]

@pipeline
def all_kinds(folder: Path = Path("raw")):
    s = split(folder)
    p = pack(note(s.train, s.test), s)
    return read(p["raw"], p["files"])
""",
    )
    run = runner.run("kinds.py:all_kinds")
    assert value_of(foundation, ops, run.id, "read") == [2, 6, {"$float": "inf"}]
    kinds = {e.step: [o.kind for o in e.outputs] for e in ops.list_steps(run=run.id)}
    assert kinds == {
        "split": ["table", "array"],
        "note": ["record"],
        "pack": ["bytes", "tree"],
        "read": ["json"],
    }
    pack = next(e for e in ops.list_steps(run=run.id) if e.step == "pack")
    assert pack.metrics == {"loss": "nan"}
    (project / "raw" / "a.txt").write_text("abcd")
    assert [w.hit for w in runner.plan("kinds.py:all_kinds")] == [False, None, None, None]
    assert runner.plan("kinds.py:all_kinds")[0].reason == "file raw changed"


def test_a_step_that_fails_skips_what_depends_on_it_and_nothing_else(
    runner: Runner, ops: Pipelines, write: Write
) -> None:
    write(
        "f.py",
        """
@step
def bad() -> int:
    print("before the fall")
    raise ValueError("no such luck")

@step
def good() -> int:
    return 1

@step
def below(x: int) -> int:
    return x

@pipeline
def mixed():
    below(bad())
    good()
""",
    )
    with pytest.raises(StepFailed, match=r"'bad' failed.*ValueError: no such luck"):
        runner.run("f.py:mixed")
    run = ops.list_runs().items[0]
    assert run.state == "failed"
    assert run.failed_step == "bad"
    assert states(ops, run.id) == {"bad": "failed", "below": "skipped", "good": "finished"}
    text = b"".join(ops.download_log(run=run.id, step="bad").chunks)
    assert b"before the fall" in text
    assert b"Traceback" in text


def test_independent_steps_run_side_by_side(
    runner: Runner, ops: Pipelines, write: Write, project: Path
) -> None:
    """Each branch waits for the other's sign: serial execution would time out."""
    write(
        "par.py",
        """
import time
from pathlib import Path

@step(timeout=20)
def branch(me: str, other: str, meet: str) -> str:
    Path(meet, me).touch()
    while not Path(meet, other).exists():
        time.sleep(0.01)
    return me

@pipeline
def meet(at: str):
    branch("a", "b", at)
    branch("b", "a", at)
""",
    )
    run = runner.run("par.py:meet", {"at": str(project)})
    assert states(ops, run.id) == {"branch": "finished", "branch_2": "finished"}


def test_a_retry_runs_again_after_a_pause_and_keeps_every_attempt(
    runner: Runner, ops: Pipelines, write: Write, project: Path
) -> None:
    write(
        "r.py",
        """
from pathlib import Path

@step(retries=2, backoff=0.01)
def flaky(folder: str) -> int:
    file = Path(folder, "tries")
    tries = int(file.read_text()) if file.exists() else 0
    file.write_text(str(tries + 1))
    if tries < 2:
        raise RuntimeError("not yet")
    return tries

@pipeline
def go(folder: str):
    flaky(folder)
""",
    )
    run = runner.run("r.py:go", {"folder": str(project)})
    attempts = ops.list_steps(run=run.id, attempts=True)
    assert [(e.attempt, e.state) for e in attempts] == [(1, "failed"), (2, "failed"), (3, "finished")]


def test_a_step_is_tried_once_more_for_each_retry_and_no_more(
    runner: Runner, ops: Pipelines, write: Write
) -> None:
    """Seen red with one more attempt than was allowed: a step that may run once must not run twice."""
    write(
        "n.py",
        """
@step(retries=2, backoff=0.01, isolation="inline")
def thrice() -> int:
    raise RuntimeError("never")

@step(isolation="inline")
def once() -> int:
    raise RuntimeError("never")

@pipeline
def go():
    return [thrice(), once()]
""",
    )
    run = runner.run("n.py:go", check=False)
    assert run.state == "failed"
    assert sorted(e.step for e in ops.list_steps(run=run.id, attempts=True)) == [
        "once",
        "thrice",
        "thrice",
        "thrice",
    ]


def test_a_runner_whose_lease_was_taken_commits_nothing(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write
) -> None:
    """Before its renewer has noticed. Seen red with ``leases.check`` taken out of the transaction that commits outputs."""
    write(
        "f.py",
        """
@step(isolation="inline")
def work() -> int:
    return 1

@pipeline
def go():
    return work()
""",
    )

    def take_over(event: PipelineEvent) -> None:
        if event.kind == "running":
            with foundation.store.write() as tx:
                assert tx.execute(
                    "UPDATE leases SET token = token + 1, holder = 'another' WHERE name = ?",
                    f"pipeline-run:{foundation.project}:{event.run}",
                )

    with pytest.raises(Fenced):
        runner.run("f.py:go", on_event=take_over)
    (run,) = ops.list_runs().items
    assert states(ops, run.id) == {"work": "running"}, "whoever holds the lease decides what becomes of it"


@pytest.mark.parametrize(("backoff", "pause"), [(40.0, "40 s"), (100.0, "60 s")])
def test_the_pause_before_a_retry_ends_at_a_minute(
    runner: Runner, ops: Pipelines, write: Write, backoff: float, pause: str
) -> None:
    """Seen red without the cap: "again in 100 s"."""
    write(
        "b.py",
        f"""
@step(retries=1, backoff={backoff}, isolation="inline")
def broken() -> int:
    raise RuntimeError("never")

@pipeline
def go():
    return broken()
""",
    )
    pauses: list[str] = []

    def end(event: PipelineEvent) -> None:
        if event.kind == "retry":
            pauses.append(event.detail.partition("again in ")[2])
            ops.cancel_run(run=event.run, reason="the pause is known")

    assert runner.run("b.py:go", on_event=end, check=False).state == "cancelled"
    assert pauses == [pause]


def test_lineage_leads_from_an_output_to_its_inputs(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write
) -> None:
    write(
        "l.py",
        """
from mainspring.pipelines import context

@step
def source() -> list[int]:
    context.current().used("dataset_version:d1")
    return [1]

@step
def sink(x: list[int]) -> int:
    context.current().produced("model_version:m@1")
    return sum(x) + 41

@pipeline
def flow():
    sink(source())
""",
    )
    run = runner.run("l.py:flow")
    graph = Lineage(foundation).get_origin(ref="model_version:m@1")
    found = {n.ref for n in graph.nodes}
    assert {"dataset_version:d1", f"run:{run.id}", f"environment:{'e' * 64}"} <= found
    assert any(n.startswith("code:") for n in found)
    assert foundation.ledger.verify().ok


def test_cancel_stops_a_running_step(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write
) -> None:
    write(
        "c.py",
        """
import time

@step
def slow() -> int:
    time.sleep(60)
    return 1

@step
def later(x: int) -> int:
    return x

@pipeline
def wait():
    later(slow())
""",
    )

    def cancel(event: PipelineEvent) -> None:
        if event.kind == "running":
            ops.cancel_run(run=event.run, reason="enough")

    run = runner.run("c.py:wait", on_event=cancel, check=False)
    assert run.state == "cancelled"
    assert states(ops, run.id)["slow"] == "cancelled"
    assert list((foundation.home / "pipelines" / "work").iterdir()) == []


def test_what_is_not_data_is_refused_with_what_to_return_instead(
    runner: Runner, ops: Pipelines, write: Write
) -> None:
    write(
        "n.py",
        """
class Thing:
    pass

@step
def odd():
    return Thing()

@pipeline
def go():
    odd()
""",
    )
    with pytest.raises(
        StepFailed, match=r"Thing cannot be an output; in what step 'odd' returned\. Return a pyarrow"
    ):
        runner.run("n.py:go")


def test_what_a_step_asks_the_run_for_counts(
    foundation: Foundation, runner: Runner, ops: Pipelines, write: Write
) -> None:
    """Seen red on 0.1: a hit, with the result of the other parameter."""
    write(
        "p.py",
        """
import mainspring as ms

@step
def asks(x: int) -> int:
    return x * int(ms.current().params["by"])

@step
def does_not(x: int) -> int:
    ms.current().log_metric("x", x)
    return x

@step
def when() -> str:
    return ms.current().at

@pipeline
def work(by: int = 2):
    asks(3)
    does_not(3)
    when()
""",
    )
    runner.run("p.py:work")
    run = runner.run("p.py:work", {"by": 5})
    assert value_of(foundation, ops, run.id, "asks") == 15
    assert states(ops, run.id) == {"asks": "finished", "does_not": "cached", "when": "cached"}
    foundation.clock.advance(timedelta(days=1))  # type: ignore[attr-defined]
    run = runner.run("p.py:work", {"by": 5})
    assert states(ops, run.id) == {"asks": "cached", "does_not": "cached", "when": "finished"}
    assert value_of(foundation, ops, run.id, "when") == foundation.clock.now().isoformat()


def test_runs_resume_and_cancel_on_each_engine(
    foundation_on_each_engine: Foundation, project: Path, write: Write
) -> None:
    write(
        "e.py",
        """
from pathlib import Path

@step
def first() -> int:
    return 1

@step
def second(x: int, folder: str) -> int:
    return x + len(Path(folder, "mended").read_text())

@pipeline
def go(folder: str):
    second(first(), folder)
""",
    )
    base = foundation_on_each_engine
    ops = Pipelines(base)
    runner = Runner(base, ops, root=project)
    failed = runner.run("e.py:go", {"folder": str(project)}, check=False)
    assert failed.error is not None
    assert failed.error.type == "FileNotFoundError"
    with pytest.raises(Conflict, match="ended already"):
        ops.cancel_run(run=failed.id)
    (project / "mended").write_text("ab")
    assert runner.resume(failed.id).state == "finished"
    assert [(e.step, e.state) for e in ops.list_steps(run=failed.id, attempts=True)] == [
        ("first", "finished"), ("second", "failed"), ("second", "finished"),
    ]  # fmt: skip
    assert ops.list_runs(limit=1).next is None
    assert sorted(operations_of(Pipelines)) == [
        "begin_step", "cancel_run", "download_log", "explain_step", "finish_step", "get_effects", "get_run", "heartbeat_step",
        "list_runs", "list_steps", "list_waiting_steps",
    ]  # fmt: skip
