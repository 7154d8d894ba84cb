"""The rows of pipeline runs and step executions: how they are written, read and looked up as cache entries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mainspring.clock import from_us, to_us
from mainspring.lineage import Decision, Foundation
from mainspring.pipelines import effects
from mainspring.pipelines.keys import Earlier
from mainspring.records.base import from_json, new_id, to_json
from mainspring.records.events import EventKind
from mainspring.records.lineage import ref
from mainspring.records.pipelines import (
    Argument,
    Artifact,
    Graph,
    Ingredients,
    PipelineRun,
    RunState,
    StepError,
    StepExecution,
    StepResult,
    StepState,
    Why,
)
from mainspring.storage.sql import Reader, Row, Writer

_STEP_COLUMNS = "id, run, step, state, attempt, cache_key, inputs, outputs, shape, metrics, log, error, why, cached_from, worker, environment, started_us, ended_us"

_ENDED: dict[RunState, EventKind] = {
    "finished": EventKind.PIPELINE_FINISHED,
    "failed": EventKind.PIPELINE_FAILED,
    "cancelled": EventKind.PIPELINE_CANCELLED,
    "interrupted": EventKind.PIPELINE_INTERRUPTED,
}


def wall_us() -> int:
    return time.time_ns() // 1000


def insert_run(d: Decision, project: str, run: PipelineRun) -> None:
    d.tx.execute(
        "INSERT INTO pipeline_runs (project, id, pipeline, state, params, graph, source, root, environment, at_us, started_us) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        project, run.id, run.pipeline, run.state, _text(run.params), _text(run.graph), run.source, run.root, run.environment,
        to_us(run.at or run.started), to_us(run.started),
    )  # fmt: skip
    d.event(
        EventKind.PIPELINE_STARTED,
        ref("run", run.id),
        {"pipeline": run.pipeline, "params": run.params, "steps": len(run.graph.steps)},
    )
    if run.environment:
        d.edge(ref("environment", run.environment), ref("run", run.id), "environment")
    for dataset in datasets_of(run.graph):
        d.edge(ref("dataset_version", dataset.version), ref("run", run.id), "input")


def datasets_of(graph: Graph) -> list[Argument]:
    """The arguments that are versions of datasets, each once."""
    found: dict[tuple[str, str | None], Argument] = {}
    waiting = [a for step in graph.steps for a in step.arguments.values()]
    while waiting:
        argument = waiting.pop()
        waiting += argument.items
        if argument.kind == "dataset":
            found[str(argument.value), argument.output] = argument
    return [found[k] for k in sorted(found, key=str)]


def end_run(
    d: Decision,
    project: str,
    run: str,
    state: RunState,
    *,
    error: StepError | None = None,
    step: str | None = None,
) -> None:
    d.tx.execute(
        "UPDATE pipeline_runs SET state = ?, ended_us = ?, error = ?, failed_step = ? WHERE project = ? AND id = ?",
        state, wall_us(), None if error is None else _text(error), step, project, run,
    )  # fmt: skip
    data: dict[str, Any] = (
        {} if error is None else {"step": step, "kind": error.kind, "message": error.message[:500]}
    )
    d.event(_ENDED[state], ref("run", run), data)


def reopen_run(d: Decision, project: str, run: str) -> None:
    """A new runner goes on with the run: what the old one left running is lost."""
    lose_running(d.tx, project, run)
    d.tx.execute(
        "UPDATE pipeline_runs SET state = 'running', ended_us = NULL, error = NULL, failed_step = NULL, cancel = 0 WHERE project = ? AND id = ?",
        project, run,
    )  # fmt: skip
    d.event(EventKind.PIPELINE_RESUMED, ref("run", run))


def lose_running(tx: Writer, project: str, run: str) -> None:
    """Whatever of the run is under way is lost, at workers too: what they send from now on is refused."""
    tx.execute(
        "UPDATE step_executions SET state = 'lost', ended_us = ? WHERE project = ? AND run = ? AND state IN ('waiting', 'running')",
        wall_us(),
        project,
        run,
    )
    # After the executions, as where one of them ends: two transactions that take the same rows in two orders block each other.
    tx.execute(
        "DELETE FROM object_refs WHERE project = ? AND owner IN "
        "(SELECT 'job:' || id FROM step_executions WHERE project = ? AND run = ? AND state = 'lost')",
        project, project, run,
    )  # fmt: skip


def insert_execution(
    tx: Writer,
    project: str,
    pipeline: str,
    execution: StepExecution,
    *,
    ingredients: Ingredients | None,
) -> None:
    e = execution
    tx.execute(
        "INSERT INTO step_executions (project, id, run, pipeline, step, state, attempt, cache_key, ingredients, inputs, outputs, shape, metrics, why, "
        "error, cached_from, started_us, ended_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        project, e.id, e.run, pipeline, e.step, e.state, e.attempt, e.key, None if ingredients is None else _text(ingredients),
        _text(e.inputs), _text(e.outputs), e.shape, _text(e.metrics), None if e.why is None else _text(e.why),
        None if e.error is None else _text(e.error), e.cached_from, to_us(e.started), None if e.ended is None else to_us(e.ended),
    )  # fmt: skip


def end_execution(
    tx: Writer,
    project: str,
    execution: str,
    state: StepState,
    *,
    result: StepResult,
    unfit: str | None = None,
) -> bool:
    """False if it is not under way any more: another transaction has ended it, and that stands."""
    error = result.error
    changed = tx.execute(
        "UPDATE step_executions SET state = ?, outputs = ?, shape = ?, metrics = ?, log = ?, error = ?, unfit = ?, ended_us = ? "
        "WHERE project = ? AND id = ? AND state IN ('waiting', 'running')",
        state, _text(result.outputs), result.shape, _text(result.metrics), result.log, None if error is None else _text(error), unfit,
        wall_us(), project, execution,
    )  # fmt: skip
    return bool(changed)


def record_finished(
    d: Decision,
    project: str,
    execution: StepExecution,
    *,
    pipeline: str,
    code: str,
    environment: str,
    result: StepResult,
) -> None:
    """The event, the edges and the references of a step that really ran and finished."""
    me = ref("step", execution.id)
    for artifact in execution.inputs:
        d.edge(artifact.source or ref("object", artifact.digest), me, "input")
        if (
            not artifact.source
        ):  # a dataset's version keeps its own bytes, and gives them up when it is deleted
            d.refer(artifact.digest, me, tree=artifact.kind == "tree")
    for artifact in result.outputs:
        d.edge(me, ref("object", artifact.digest), "output")
        d.refer(artifact.digest, me, tree=artifact.kind == "tree")
    if result.log is not None:
        d.refer(result.log, me)
    d.edge(ref("run", execution.run), me, "step")
    d.edge(ref("code", code), me, "code")
    d.refer(code, me)
    if environment:
        d.edge(ref("environment", environment), me, "environment")
    for reference in result.used:
        d.edge(reference, me, "used")
    effects.store(d.tx, project, execution.id, result.effects)
    since = to_us(execution.started)
    for effect in result.effects:
        if effect.kind in {"alias", "action", "artifact"}:
            continue
        if effects.made_here(d.tx, project, effect.ref, since_us=since):
            d.edge(me, effect.ref, "produced")
        else:  # it was there before: whoever makes equal content again is not its cause
            d.edge(effect.ref, me, "reused")
    d.event(
        EventKind.STEP_FINISHED,
        me,
        {
            "run": execution.run,
            "pipeline": pipeline,
            "step": execution.step,
            "key": execution.key,
            "outputs": {a.name: a.digest for a in result.outputs},
        },
    )


def find_entry(tx: Reader, project: str, key: str, *, run: str | None = None) -> StepExecution | None:
    """The newest usable execution with this key; with ``run``, only one of that run (cached ones too)."""
    where, values = "state = 'finished' AND unfit IS NULL", [project, key]
    if run is not None:
        where, values = "state IN ('finished', 'cached') AND run = ?", [project, key, run]
    row = tx.first(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND cache_key = ? AND {where} ORDER BY id DESC LIMIT 1",
        *values,
    )
    return None if row is None else execution_of(row)


def find_earlier(tx: Reader, project: str, pipeline: str, step: str) -> Earlier | None:
    """The newest finished execution of a step with what it was made of: what a miss is compared with."""
    row = tx.first(
        "SELECT id, cache_key, ingredients, unfit FROM step_executions WHERE project = ? AND pipeline = ? AND step = ? AND state = 'finished' "
        "AND ingredients IS NOT NULL ORDER BY id DESC LIMIT 1",
        project, pipeline, step,
    )  # fmt: skip
    if row is None:
        return None
    ingredients: Ingredients = from_json(row["ingredients"], Ingredients)
    return Earlier(str(row["id"]), str(row["cache_key"]), ingredients, row["unfit"])


def record_reuse(d: Decision, project: str, execution: StepExecution, origin: str) -> bool:
    """A result was taken that had effects: the new run and execution are led to by the same things. Whether it had any."""
    found = effects.of_execution(d.tx, project, origin)
    if not found:
        return False
    me, run = ref("step", execution.id), ref("run", execution.run)
    d.edge(ref("step", origin), me, "cached")
    d.edge(run, me, "step")
    for effect in found:
        if effect.kind not in {"alias", "action"}:
            d.edge(effect.ref, me, "reused")
            d.edge(effect.ref, run, "reused")
    return True


def distrust(tx: Writer, project: str, execution: str) -> None:
    """Its bytes are gone or wrong: never take this entry again."""
    tx.execute(
        "UPDATE step_executions SET state = 'lost' WHERE project = ? AND (id = ? OR cached_from = ?) AND state IN ('finished', 'cached')",
        project, execution, execution,
    )  # fmt: skip


def attempts_of(tx: Reader, project: str, run: str) -> dict[str, int]:
    rows = tx.all(
        "SELECT step, max(attempt) AS n FROM step_executions WHERE project = ? AND run = ? GROUP BY step",
        project,
        run,
    )
    return {str(r["step"]): int(r["n"]) for r in rows}


def read_run(tx: Reader, project: str, run: str) -> PipelineRun:
    return run_of(
        tx.one(
            "SELECT * FROM pipeline_runs WHERE project = ? AND id = ?",
            project,
            run,
            what=f"pipeline run {run}",
        )
    )


def read_executions(tx: Reader, project: str, run: str) -> list[StepExecution]:
    rows = tx.all(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND run = ? ORDER BY id", project, run
    )
    return [execution_of(r) for r in rows]


def read_execution(tx: Reader, project: str, execution: str) -> StepExecution:
    row = tx.one(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND id = ?",
        project, execution, what=f"step execution {execution}",
    )  # fmt: skip
    return execution_of(row)


def read_ingredients(tx: Reader, project: str, execution: str) -> Ingredients:
    """What the cache key of an execution that ran is made of."""
    text = tx.scalar(
        "SELECT ingredients FROM step_executions WHERE project = ? AND id = ?", project, execution
    )
    return from_json(text, Ingredients)


def is_cancelled(tx: Reader, project: str, run: str) -> bool:
    return bool(tx.scalar("SELECT cancel FROM pipeline_runs WHERE project = ? AND id = ?", project, run))


def run_of(row: Row) -> PipelineRun:
    return PipelineRun(
        id=row["id"],
        pipeline=row["pipeline"],
        state=row["state"],
        params=from_json(row["params"]),
        graph=from_json(row["graph"], Graph),
        source=row["source"],
        root=row["root"],
        environment=row["environment"],
        started=from_us(row["started_us"]),
        ended=None if row["ended_us"] is None else from_us(row["ended_us"]),
        error=None if row["error"] is None else from_json(row["error"], StepError),
        failed_step=row["failed_step"],
        cancel_requested=bool(row["cancel"]),
        at=from_us(row["at_us"]),
    )


def execution_of(row: Row) -> StepExecution:
    return StepExecution(
        id=row["id"],
        run=row["run"],
        step=row["step"],
        state=row["state"],
        attempt=int(row["attempt"]),
        started=from_us(row["started_us"]),
        ended=None if row["ended_us"] is None else from_us(row["ended_us"]),
        key=row["cache_key"],
        inputs=from_json(row["inputs"], list[Artifact]),
        outputs=from_json(row["outputs"], list[Artifact]),
        shape=row["shape"],
        metrics=from_json(row["metrics"], dict[str, float | str]),
        log=row["log"],
        error=None if row["error"] is None else from_json(row["error"], StepError),
        why=None if row["why"] is None else from_json(row["why"], Why),
        cached_from=row["cached_from"],
        worker=row["worker"],
        environment=row["environment"],
    )


def new_execution(
    *, run: str, step: str, state: StepState, attempt: int, why: Why | None, inputs: Sequence[Artifact] = ()
) -> StepExecution:
    now = from_us(wall_us())
    return StepExecution(
        id=new_id(),
        run=run,
        step=step,
        state=state,
        attempt=attempt,
        started=now,
        ended=None if state in {"waiting", "running"} else now,
        key=None if why is None else why.key,
        inputs=list(inputs),
        why=why,
    )


def run_lease(base: Foundation, run: str) -> str:
    """The name of the lease that the one runner of a run holds."""
    return f"pipeline-run:{base.project}:{run}"


def _text(value: object) -> str:
    return to_json(value).decode()
