"""Pipelines: the graph as data, runs of it, executions of its steps, and why a step ran."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from mainspring.records.base import Digest, Id, Record

ArtifactKind = Literal["json", "record", "table", "array", "estimator", "bytes", "file", "tree"]
RunState = Literal["running", "finished", "failed", "cancelled", "interrupted"]
StepState = Literal["waiting", "running", "finished", "cached", "failed", "skipped", "lost", "cancelled"]
ExecutorName = Literal["local", "worker"]
"""Where the attempts at a run's steps are executed: ``pipelines/executors.py`` has the table."""


class Artifact(Record, frozen=True):
    """A typed value by reference. ``digest`` names its bytes (of the tree object for ``tree``); ``size`` in bytes."""

    name: str
    """The output's name; ``value`` for a step with a single output."""
    kind: ArtifactKind
    digest: Digest
    size: int
    type: str = ""
    """For ``record``: the qualified name of its type; for ``file`` and ``tree``: the base name of the path."""
    source: str = ""
    """For an input that is a dataset version: its reference."""


class Argument(Record, frozen=True):
    """One argument of a step call: a literal, a path or a dataset outside the graph, an earlier step's output, or a
    collection of these."""

    kind: Literal["value", "path", "dataset", "output", "list", "dict"]
    value: Any = None
    """``value``: plain JSON data. ``path``: its text; the bytes behind it are the input. ``dataset``: its name."""
    step: str = ""
    output: str | None = None
    """``output``: which one of ``step``; None means everything it returned. ``dataset``: the selector of the version."""
    version: str = ""
    """``dataset``: the id of the version that the run reads."""
    items: list[Argument] = []
    keys: list[str] = []


class GraphStep(Record, frozen=True):
    """A step call in a pipeline. ``function`` is ``file:qualname``, the file relative to the project where it can be."""

    name: str
    function: str
    arguments: dict[str, Argument]
    after: list[str] = []
    """Steps that must finish first although no data flows."""
    isolation: Literal["process", "inline"] = "process"
    cache: bool = True
    version: str = ""
    timeout_s: float | None = None
    retries: int = 0
    backoff_s: float = 1.0
    memory_bytes: int | None = None
    outputs: list[str] | None = None
    """Names declared by ``@step(outputs=...)``."""
    paths: bool | list[str] = True
    """Whether text that names a file counts by the file's content; a list: in these arguments only."""


class Graph(Record, frozen=True):
    """A pipeline's steps in the order of their calls, which is a topological order."""

    pipeline: str
    steps: list[GraphStep]


class Ingredients(Record, frozen=True):
    """What a cache key is computed from; kept, so that two executions can be compared."""

    code: Digest
    parts: dict[str, str]
    """Each definition in the closure (``file:name``) with a digest of its normalised source."""
    inputs: dict[str, str]
    params: dict[str, Any]
    environment: str
    version: str = ""
    files: dict[str, str] = {}
    """Files and folders named by text among the arguments, with a digest of what they hold."""
    paths: dict[str, str] = {}
    """For messages only: the path of each argument that is a path."""


class StepError(Record, frozen=True):
    """Why a step failed. Its log has the whole traceback."""

    kind: Literal[
        "exception", "output", "input", "signal", "memory", "timeout", "exit", "cancelled", "upstream", "lost"
    ]
    type: str
    message: str
    signal: str | None = None


class Change(Record, frozen=True):
    """One thing that differs: an ingredient of the key, or what an earlier execution left behind."""

    what: Literal["code", "input", "file", "param", "environment", "version", "artifact", "effect"]
    name: str
    before: Any = None
    after: Any = None


class Why(Record, frozen=True):
    """Why a step ran or did not. ``hit`` is None while an upstream result is still unknown."""

    step: str
    hit: bool | None
    reason: str
    changes: list[Change] = []
    compared_to: str | None = None
    """The earlier step execution that it was compared with, or whose results it reused."""
    key: str | None = None


class Effect(Record, frozen=True):
    """What a step made or changed in another room. ``ref`` is a reference to it; for an ``action``, which leaves nothing to refer
    to, the operation that was called."""

    kind: Literal["dataset_version", "model_version", "alias", "artifact", "reference", "action"]
    ref: str
    operation: str = ""
    data: dict[str, Any] = {}


class RunEffect(Record, frozen=True):
    """An effect of a step of a run. ``reused``: an earlier execution had it, and this run reused its results."""

    step: str
    effect: Effect
    reused: bool = False


class StepExecution(Record, frozen=True):
    """One attempt at one step of a run. ``started`` and ``ended`` are machine time."""

    id: Id
    run: Id
    step: str
    state: StepState
    attempt: int
    started: datetime
    ended: datetime | None = None
    key: str | None = None
    inputs: list[Artifact] = []
    outputs: list[Artifact] = []
    shape: str = "single"
    """How outputs make up the returned value: ``single``, ``tuple``, ``named`` or ``dict``."""
    metrics: dict[str, float | str] = {}
    """Non-finite numbers as text (``nan``, ``inf``, ``-inf``), since JSON has none."""
    log: Digest | None = None
    error: StepError | None = None
    why: Why | None = None
    cached_from: str | None = None
    worker: str = ""
    """The worker that executes or executed it; empty if the runner did."""
    environment: str = ""
    """The digest of the worker's environment, as the worker reported it."""


class StepSource(Record, frozen=True):
    """All outputs of an earlier step (or one outside path), and the function that made them, for the types."""

    shape: str
    outputs: list[Artifact]
    producer: str | None = None


class StepJob(Record, frozen=True):
    """One attempt at a step, described by digests: the executor decides where its files are."""

    project: str
    run: Id
    pipeline: str
    step: str
    execution: Id
    attempt: int
    function: str
    """``file:qualname``, the file relative to the project."""
    arguments: dict[str, Argument]
    sources: dict[str, StepSource]
    """By step name; by ``path:<text>`` and ``dataset:<name>@<selector>`` for what comes from outside the graph."""
    params: dict[str, Any] = {}
    """The pipeline's parameters, for information."""
    at: str = ""
    """Policy time at the start of the run, RFC 3339."""
    memory_bytes: int | None = None
    timeout_s: float | None = None
    outputs: list[str] | None = None
    """Names declared by ``@step(outputs=...)``."""
    files: Digest | None = None
    """A tree of the source files, and of the files that the step names by text; None where the executor has the project itself."""
    variables: dict[str, str | None] = {}
    """Variables of the environment that the code reads, with short digests of their values where the run was started: they are
    part of the cache key, so they must have the same values wherever the step runs."""
    modules: list[str] = []
    """What the code imports from outside the project: worth importing before the step's process is forked."""


class StepResult(Record, frozen=True):
    """The result of an attempt, described by digests. ``used`` holds references for lineage."""

    error: StepError | None = None
    outputs: list[Artifact] = []
    shape: str = "single"
    metrics: dict[str, float | str] = {}
    used: list[str] = []
    effects: list[Effect] = []
    log: Digest | None = None


class WaitingStep(Record, frozen=True):
    """A step that waits for a worker."""

    execution: Id
    run: Id
    pipeline: str
    step: str
    since: datetime


class StepLease(Record, frozen=True):
    """A step that a worker has begun. ``token`` goes with every further call; without a heartbeat for ``ttl_s`` seconds the
    attempt is lost."""

    job: StepJob
    token: str
    ttl_s: float


class Heartbeat(Record, frozen=True):
    """Whether a worker shall continue its step, and if not, why."""

    go_on: bool
    reason: str = ""


class PipelineRun(Record, frozen=True):
    """A run of a pipeline. ``source`` is ``file:name``, relative to ``root`` on the machine that ran it."""

    id: Id
    pipeline: str
    state: RunState
    params: dict[str, Any]
    graph: Graph
    source: str
    root: str
    environment: str
    started: datetime
    ended: datetime | None = None
    error: StepError | None = None
    failed_step: str | None = None
    cancel_requested: bool = False
    at: datetime | None = None
    """Policy time at the start."""


class PipelineRunPage(Record, frozen=True):
    items: list[PipelineRun]
    next: str | None = None
    """Pass as ``after`` for the next page; None at the end."""


class PipelineEvent(Record, frozen=True):
    """Progress, as passed to ``on_event``: what just happened to which step."""

    kind: Literal[
        "started", "cached", "waiting", "running", "retry", "finished", "failed", "skipped", "ended"
    ]
    run: Id
    step: str | None = None
    detail: str = ""
    seconds: float | None = None
    files: list[str] = []
    """``started``: the project's files that the steps' code is made of, relative to the project."""
