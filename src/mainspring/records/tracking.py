"""Runs and what they log."""

from __future__ import annotations

import enum
import math
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from mainspring.records.base import Digest, Id, Page, Record

Special = Literal["NaN", "Infinity", "-Infinity"]

Step = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A training step: any 64-bit integer."""

TimeUs = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Microseconds since the epoch by the client's clock: it may be out of range, so it is not a datetime."""


class RunStatus(enum.StrEnum):
    """``crashed`` is derived: a running run whose process stopped sending heartbeats. Data that resumes corrects it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    CRASHED = "crashed"


def split_number(number: float) -> tuple[float | None, Special | None]:
    """A double as JSON can carry it: ``(value, special)``, one of them None.

    >>> split_number(1.5), split_number(float("inf"))
    ((1.5, None), (None, 'Infinity'))
    """
    if math.isfinite(number):
        return number, None
    if math.isnan(number):
        return None, "NaN"
    return None, "Infinity" if number > 0 else "-Infinity"


class Metric(Record, frozen=True, kw_only=True):
    """A logged number, an IEEE 754 double. JSON has no NaN and no infinity: those are named by ``special``."""

    value: float | None = None
    special: Special | None = None
    step: Step = 0
    time_us: TimeUs = 0

    @property
    def number(self) -> float:
        """The value as Python knows it, NaN and infinities included."""
        return float(self.special or "nan") if self.value is None else self.value


class Point(Metric, frozen=True, kw_only=True):
    """A number to be logged under ``key``."""

    key: str

    @classmethod
    def of(cls, key: str, number: float, *, step: int = 0, time_us: int = 0) -> Point:
        """A point of any double, NaN and infinities included."""
        value, special = split_number(number)
        return cls(key=key, value=value, special=special, step=step, time_us=time_us)


class Experiment(Record, frozen=True, kw_only=True):
    """A group of runs. ``id`` never changes, ``name`` is unique in the project and may change; ``runs`` counts those not deleted."""

    id: Id
    name: str
    created_at: datetime
    deleted: bool = False
    tags: dict[str, str] = {}
    runs: int = 0


class ExperimentPage(Page, frozen=True, kw_only=True):
    items: list[Experiment]


class Run(Record, frozen=True, kw_only=True):
    """One execution that was recorded. ``metrics`` holds the latest value of each (highest step, then time).

    ``experiment`` is the name that the experiment has now. ``deleted``: the run, or its experiment.
    """

    id: str
    experiment: str
    experiment_id: Id
    name: str
    status: RunStatus
    started_at: datetime
    ended_at: datetime | None
    created_at: datetime
    created_by: str
    parent: str | None = None
    code: Digest | None = None
    environment: Digest | None = None
    source: dict[str, Any] = {}
    deleted: bool = False
    metrics: dict[str, Metric] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}


class RunPage(Page, frozen=True, kw_only=True):
    items: list[Run]


class HistoryPage(Page, frozen=True, kw_only=True):
    """Points of one metric by step, then time. ``total`` counts all that were logged, also when ``items`` is a thinned view."""

    key: str
    total: int
    items: list[Metric]


class Artifact(Record, frozen=True, kw_only=True):
    """A file of a run: an object under a logical path."""

    path: str
    digest: Digest
    size: int
    at: datetime


class ArtifactPage(Page, frozen=True, kw_only=True):
    items: list[Artifact]


class BatchResult(Record, frozen=True, kw_only=True):
    """``stored`` is False when this batch id was stored before: nothing happened this time."""

    stored: bool
    points: int


class FileState(Record, frozen=True, kw_only=True):
    """A file that is not in the commit: its digest, or why it has none (too large, unreadable)."""

    path: str
    size: int = 0
    digest: str | None = None
    skipped: str | None = None


class CodeState(Record, frozen=True, kw_only=True):
    """The code that ran: a Git commit plus the differences from it. ``missing`` says what could not be captured, and why."""

    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    dirty: bool = False
    diff: str | None = None
    """Output of ``git diff HEAD``; None when clean or over the limit (then see ``diff_digest``)."""
    diff_digest: str | None = None
    diff_bytes: int = 0
    untracked: list[FileState] = []
    script: str | None = None
    missing: list[str] = []
    files: list[FileState] = []
    """Source files that are kept with the run, whether Git knows them or not: ``digest`` names their bytes."""


class Package(Record, frozen=True, kw_only=True):
    """An installed distribution. ``hash`` is the BLAKE3 of its RECORD file, else of its metadata; None if neither is readable."""

    name: str
    version: str
    hash: str | None = None


class EnvironmentState(Record, frozen=True, kw_only=True):
    """The environment of a run. Equal environments have equal documents, hence one digest: no field varies by run."""

    python: str
    implementation: str
    platform: str
    machine: str
    libc: str
    packages: list[Package]
    missing: list[str] = []


class CaptureResult(Record, frozen=True, kw_only=True):
    code: Digest | None
    environment: Digest | None
