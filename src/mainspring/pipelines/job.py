"""What the runner tells the process of a step, and what comes back: two JSON files in the step's scratch directory."""

from __future__ import annotations

from pathlib import Path

from mainspring.records.base import Record, from_json, to_json
from mainspring.records.pipelines import Argument, Artifact, ArtifactKind, Effect, StepError

JOB = "job.json"
RESULT = "result.json"


class Located(Record, frozen=True):
    """An artifact whose bytes lie in a local file or directory."""

    artifact: Artifact
    path: str


class Source(Record, frozen=True):
    """All outputs of an earlier step (or one outside path), and the function that made them, for the types."""

    shape: str
    outputs: list[Located]
    producer: str | None = None


class Job(Record, frozen=True):
    """One attempt at a step."""

    project: str
    run: str
    pipeline: str
    step: str
    execution: str
    attempt: int
    function: str
    root: str
    scratch: str
    arguments: dict[str, Argument]
    sources: dict[str, Source]
    """By step name; by ``path:<text>`` and ``dataset:<name>@<selector>`` for what comes from outside the graph."""
    params: dict[str, object] = {}
    """The pipeline's parameters, for information."""
    at: str = ""
    """Policy time at the start of the run, RFC 3339."""
    memory_bytes: int | None = None
    outputs: list[str] | None = None
    """Names declared by ``@step(outputs=...)``."""
    opener: str | None = None
    """``module:function`` that opens the workspace, called with ``workspace`` as keywords."""
    workspace: dict[str, object] = {}


class Output(Record, frozen=True):
    """An output that was written to ``path`` but is not yet in the object store."""

    name: str
    kind: ArtifactKind
    path: str
    type: str = ""


class Result(Record, frozen=True):
    """What the attempt came to. ``used`` and ``produced`` are references for lineage."""

    error: StepError | None = None
    outputs: list[Output] = []
    shape: str = "single"
    metrics: dict[str, float | str] = {}
    used: list[str] = []
    produced: list[str] = []
    effects: list[Effect] = []
    modules: list[str] = []
    """Installed modules that the attempt imported itself: worth loading before the next one."""


def source_key(argument: Argument) -> str:
    """Where a job keeps what the argument refers to."""
    if argument.kind == "dataset":
        return f"dataset:{argument.value}@{argument.output}"
    return argument.step if argument.kind == "output" else f"path:{argument.value}"


def write_job(job: Job) -> Path:
    path = Path(job.scratch) / JOB
    path.write_bytes(to_json(job))
    return path


def read_job(path: Path) -> Job:
    return from_json(path.read_bytes(), Job)


def write_result(scratch: Path, result: Result) -> None:
    """Appears whole or not at all: its presence means that every output is complete."""
    part = scratch / f"{RESULT}.part"
    part.write_bytes(to_json(result))
    part.replace(scratch / RESULT)


def read_result(scratch: Path) -> Result | None:
    """The result, or None if the process ended before it had one."""
    try:
        return from_json((scratch / RESULT).read_bytes(), Result)
    except FileNotFoundError:
        return None
