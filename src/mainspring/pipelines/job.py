"""One attempt on the machine that executes it: its job with its place, and its result, as JSON files in its scratch directory.

The job itself (``records.pipelines.StepJob``) is described by digests and is the same wherever it runs.
"""

from __future__ import annotations

from pathlib import Path

from mainspring.records.base import Record, from_json, to_json
from mainspring.records.pipelines import Argument, Artifact, ArtifactKind, Effect, StepError, StepJob

TASK = "task.json"
RESULT = "result.json"


class Place(Record, frozen=True):
    """Where a job runs on this machine."""

    root: str
    """The folder with the project's files."""
    scratch: str
    inputs: dict[str, str]
    """Where the bytes of each input lie, by :func:`input_key`."""
    opener: str | None = None
    """``module:function`` that opens the workspace, called with ``workspace`` as keywords."""
    workspace: dict[str, object] = {}


class Task(Record, frozen=True):
    """A job with its place."""

    job: StepJob
    place: Place


class Output(Record, frozen=True):
    """An output that was written to ``path`` but is not yet in the object store."""

    name: str
    kind: ArtifactKind
    path: str
    type: str = ""


class Result(Record, frozen=True):
    """The result of an attempt. ``used`` and ``produced`` are references for lineage."""

    error: StepError | None = None
    outputs: list[Output] = []
    shape: str = "single"
    metrics: dict[str, float | str] = {}
    used: list[str] = []
    produced: list[str] = []
    effects: list[Effect] = []
    modules: list[str] = []
    """Installed modules that the attempt imported itself, for the warm server to preload."""


def source_key(argument: Argument) -> str:
    """The key in ``StepJob.sources`` of what the argument refers to."""
    if argument.kind == "dataset":
        return f"dataset:{argument.value}@{argument.output}"
    return argument.step if argument.kind == "output" else f"path:{argument.value}"


def input_key(artifact: Artifact) -> str:
    """The key in :attr:`Place.inputs` of an input. Files that a step sees as paths are distinguished by their names too."""
    if artifact.kind in {"file", "tree"}:
        return f"{artifact.digest}/{artifact.type or 'data'}"
    return artifact.digest


def write_task(task: Task) -> Path:
    path = Path(task.place.scratch) / TASK
    path.write_bytes(to_json(task))
    return path


def read_task(path: Path) -> Task:
    return from_json(path.read_bytes(), Task)


def write_result(scratch: Path, result: Result) -> None:
    """Write the result by a rename, so that it is complete or absent: if it exists, every output is complete."""
    part = scratch / f"{RESULT}.part"
    part.write_bytes(to_json(result))
    part.replace(scratch / RESULT)


def read_result(scratch: Path) -> Result | None:
    """The result, or None if the process ended before it had one."""
    try:
        return from_json((scratch / RESULT).read_bytes(), Result)
    except FileNotFoundError:
        return None
