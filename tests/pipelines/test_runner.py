"""Runs on a real workspace: results, parallel branches, failures, retries, logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mainspring.lineage import Foundation
from mainspring.pipelines import Pipelines, Runner
from mainspring.records.base import from_json

Write = Callable[[str, str], Path]


def value_of(foundation: Foundation, ops: Pipelines, run: str, step: str, output: str = "value") -> object:
    execution = next(e for e in ops.steps(run=run) if e.step == step)
    return from_json(foundation.objects.read(next(o.digest for o in execution.outputs if o.name == output)))


def states(ops: Pipelines, run: str) -> dict[str, str]:
    return {e.step: e.state for e in ops.steps(run=run)}


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
    assert b"hello from one" in b"".join(ops.log(run=run.id, step="one").chunks)
    again = runner.run("p.py:add", {"x": 41})
    assert states(ops, again.id) == {"one": "cached", "two": "cached"}
    assert ops.why(run=again.id, step="one").hit
    assert [w.hit for w in runner.plan("p.py:add", {"x": 41})] == [True, True]
    assert [w.hit for w in runner.plan("p.py:add", {"x": 2})] == [False, None]
