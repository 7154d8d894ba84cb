"""The rows of pipeline runs and step executions: written, read, and looked up as cache entries."""

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
    """The machine's time in microseconds; policy time, which a simulation may move, is the clock's."""
    return time.time_ns() // 1000


def insert_run(d: Decision, project: str, run: PipelineRun) -> None:
    """Write a new run, with its event and the edges from its environment and datasets."""
    d.tx.execute(
        "INSERT INTO pipeline_runs (project, id, pipeline, state, params, graph, source, root, environment, at_us, started_us) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        project, run.id, run.pipeline, run.state, _json_text(run.params), _json_text(run.graph), run.source, run.root, run.environment,
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
    """The arguments that are versions of datasets, each once, in a fixed order."""
    arguments: dict[tuple[str, str | None], Argument] = {}
    waiting = [a for step in graph.steps for a in step.arguments.values()]
    while waiting:
        argument = waiting.pop()
        waiting += argument.items
        if argument.kind == "dataset":
            arguments[str(argument.value), argument.output] = argument
    return [arguments[k] for k in sorted(arguments, key=str)]


def end_run(
    d: Decision,
    project: str,
    run: str,
    state: RunState,
    *,
    error: StepError | None = None,
    step: str | None = None,
) -> None:
    """Set the final state of a run, with its event. ``error`` and ``step`` name what failed first."""
    d.tx.execute(
        "UPDATE pipeline_runs SET state = ?, ended_us = ?, error = ?, failed_step = ? WHERE project = ? AND id = ?",
        state, wall_us(), None if error is None else _json_text(error), step, project, run,
    )  # fmt: skip
    data: dict[str, Any] = (
        {} if error is None else {"step": step, "kind": error.kind, "message": error.message[:500]}
    )
    d.event(_ENDED[state], ref("run", run), data)


def reopen_run(d: Decision, project: str, run: str) -> None:
    """A new runner goes on with the run: executions that the old one left under way are lost."""
    lose_running(d.tx, project, run)
    d.tx.execute(
        "UPDATE pipeline_runs SET state = 'running', ended_us = NULL, error = NULL, failed_step = NULL, cancel = 0 WHERE project = ? AND id = ?",
        project, run,
    )  # fmt: skip
    d.event(EventKind.PIPELINE_RESUMED, ref("run", run))


def lose_running(tx: Writer, project: str, run: str) -> None:
    """Mark the executions of the run that are under way as lost, at workers too: results that come later are refused."""
    tx.execute(
        "UPDATE step_executions SET state = 'lost', ended_us = ? WHERE project = ? AND run = ? AND state IN ('waiting', 'running')",
        wall_us(),
        project,
        run,
    )
    # After the executions, as in attempts.end_attempt: transactions that lock the same rows in different orders block each other.
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
        project, e.id, e.run, pipeline, e.step, e.state, e.attempt, e.key, None if ingredients is None else _json_text(ingredients),
        _json_text(e.inputs), _json_text(e.outputs), e.shape, _json_text(e.metrics), None if e.why is None else _json_text(e.why),
        None if e.error is None else _json_text(e.error), e.cached_from, to_us(e.started), None if e.ended is None else to_us(e.ended),
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
    """End an execution; False if it is no longer under way, because another transaction has ended it.

    The condition on the state makes this a compare-and-set: of several callers exactly one ends the execution.
    """
    error = result.error
    changed = tx.execute(
        "UPDATE step_executions SET state = ?, outputs = ?, shape = ?, metrics = ?, log = ?, error = ?, unfit = ?, ended_us = ? "
        "WHERE project = ? AND id = ? AND state IN ('waiting', 'running')",
        state, _json_text(result.outputs), result.shape, _json_text(result.metrics), result.log, None if error is None else _json_text(error), unfit,
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
    """Write the event, the edges and the references of a step that ran and finished (not one taken from the cache)."""
    subject = ref("step", execution.id)
    for artifact in execution.inputs:
        d.edge(artifact.source or ref("object", artifact.digest), subject, "input")
        if (
            not artifact.source
        ):  # a dataset's version keeps its own bytes, and gives them up when it is deleted
            d.refer(artifact.digest, subject, tree=artifact.kind == "tree")
    for artifact in result.outputs:
        d.edge(subject, ref("object", artifact.digest), "output")
        d.refer(artifact.digest, subject, tree=artifact.kind == "tree")
    if result.log is not None:
        d.refer(result.log, subject)
    d.edge(ref("run", execution.run), subject, "step")
    d.edge(ref("code", code), subject, "code")
    d.refer(code, subject)
    if environment:
        d.edge(ref("environment", environment), subject, "environment")
    for reference in result.used:
        d.edge(reference, subject, "used")
    effects.insert_effects(d.tx, project, execution.id, result.effects)
    since = to_us(execution.started)
    for effect in result.effects:
        if effect.kind in {"alias", "action", "artifact"}:
            continue
        if effects.is_new_since(d.tx, project, effect.ref, since_us=since):
            d.edge(subject, effect.ref, "produced")
        else:  # it existed before: making equal content again does not make the step its cause
            d.edge(effect.ref, subject, "reused")
    d.event(
        EventKind.STEP_FINISHED,
        subject,
        {
            "run": execution.run,
            "pipeline": pipeline,
            "step": execution.step,
            "key": execution.key,
            "outputs": {a.name: a.digest for a in result.outputs},
        },
    )


def find_entry(tx: Reader, project: str, key: str, *, run: str | None = None) -> StepExecution | None:
    """The newest usable execution with this key; with ``run``, only one of that run (cached ones too).

    The index over project, key and state leads to the few candidates; ids are ordered by time, so the largest is the newest.
    """
    where, values = "state = 'finished' AND unfit IS NULL", [project, key]
    if run is not None:
        where, values = "state IN ('finished', 'cached') AND run = ?", [project, key, run]
    row = tx.first(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND cache_key = ? AND {where} ORDER BY id DESC LIMIT 1",
        *values,
    )
    return None if row is None else execution_of(row)


def find_earlier(tx: Reader, project: str, pipeline: str, step: str) -> Earlier | None:
    """The newest finished execution of a step with its ingredients, to explain a cache miss by comparison."""
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
    """Write edges from the effects of a result that was taken from the cache to the new execution and run.

    Returns whether the execution ``origin`` had any effects.
    """
    origin_effects = effects.read_effects(d.tx, project, origin)
    if not origin_effects:
        return False
    subject, run = ref("step", execution.id), ref("run", execution.run)
    d.edge(ref("step", origin), subject, "cached")
    d.edge(run, subject, "step")
    for effect in origin_effects:
        if effect.kind not in {"alias", "action"}:
            d.edge(effect.ref, subject, "reused")
            d.edge(effect.ref, run, "reused")
    return True


def invalidate_entry(tx: Writer, project: str, execution: str) -> None:
    """Mark a cache entry whose bytes are missing or wrong, so that it is never taken again."""
    tx.execute(
        "UPDATE step_executions SET state = 'lost' WHERE project = ? AND (id = ? OR cached_from = ?) AND state IN ('finished', 'cached')",
        project, execution, execution,
    )  # fmt: skip


def read_attempt_numbers(tx: Reader, project: str, run: str) -> dict[str, int]:
    """The number of the latest attempt at each step of the run."""
    rows = tx.all(
        "SELECT step, max(attempt) AS n FROM step_executions WHERE project = ? AND run = ? GROUP BY step",
        project,
        run,
    )
    return {str(r["step"]): int(r["n"]) for r in rows}


def read_run(tx: Reader, project: str, run: str) -> PipelineRun:
    """One run; raises :class:`NotFound`."""
    return run_of(
        tx.one(
            "SELECT * FROM pipeline_runs WHERE project = ? AND id = ?",
            project,
            run,
            what=f"pipeline run {run}",
        )
    )


def read_executions(tx: Reader, project: str, run: str) -> list[StepExecution]:
    """Every execution of the run, oldest first."""
    rows = tx.all(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND run = ? ORDER BY id", project, run
    )
    return [execution_of(r) for r in rows]


def read_execution(tx: Reader, project: str, execution: str) -> StepExecution:
    """One execution; raises :class:`NotFound`."""
    row = tx.one(
        f"SELECT {_STEP_COLUMNS} FROM step_executions WHERE project = ? AND id = ?",
        project, execution, what=f"step execution {execution}",
    )  # fmt: skip
    return execution_of(row)


def read_ingredients(tx: Reader, project: str, execution: str) -> Ingredients:
    """The ingredients of the cache key of an execution that ran."""
    text = tx.scalar(
        "SELECT ingredients FROM step_executions WHERE project = ? AND id = ?", project, execution
    )
    return from_json(text, Ingredients)


def is_cancelled(tx: Reader, project: str, run: str) -> bool:
    """Whether somebody asked to cancel the run."""
    return bool(tx.scalar("SELECT cancel FROM pipeline_runs WHERE project = ? AND id = ?", project, run))


def run_of(row: Row) -> PipelineRun:
    """The record of a row of ``pipeline_runs``."""
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
    """The record of a row of ``step_executions``."""
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
    """A new execution of a step, with an id of its own, started now; nothing is stored."""
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


def _json_text(value: object) -> str:
    return to_json(value).decode()
