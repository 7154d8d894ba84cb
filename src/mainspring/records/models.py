"""Models: signatures, packages, versions, aliases."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any, Literal, Protocol

from mainspring.records.base import Digest, Page, Record, Selector


class Task(enum.StrEnum):
    """What a model answers: one of two classes, one of several classes, a number, or several named numbers.

    ``values``: several targets at once, the columns of a transformer, the cluster of a row, the score of a detector. Such answers
    are served and logged; there is no label to compare them with.
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"
    VALUES = "values"


class Column(Record, frozen=True):
    """One input column. ``nullable`` columns may be missing or null in a request. A ``datetime`` is a date or a time: in a request text
    in ISO 8601, of UTC where it names no zone.

    ``categories``: of a column that was categorical in training (pandas ``category``, Arrow dictionary): its categories in their
    order. The estimator gets such a column again, with a null for any other value.
    """

    name: str
    type: Literal["float64", "int64", "string", "bool", "datetime"]
    nullable: bool = False
    categories: list[str] = []


ClassType = Literal["float64", "int64", "string", "bool"]


class Signature(Record, frozen=True):
    """What goes in and what comes out. ``classes``: labels in the order of the probabilities (binary: [negative, positive]).

    ``class_type`` is the type of the estimator's classes, by which labels are matched (records.classes); None in records
    that are older than this field: inferred. ``class_values``: the estimator's own classes where ``classes`` gives them other names.

    ``scores``: what a classifier's scores are; ``decision`` of one that gives no probabilities. ``threshold`` (binary): a row is
    positive if its score is greater; None: 0.5 for probabilities, 0 for decision values. ``outputs``: with the task ``values``, the
    names of the numbers, in their order.
    """

    inputs: list[Column]
    task: Task
    classes: list[str] = []
    class_type: ClassType | None = None
    class_values: list[str] = []
    scores: Literal["probability", "decision"] = "probability"
    threshold: float | None = None
    outputs: list[str] = []

    @property
    def width(self) -> int:
        """How many numbers the answer to a row has; 0: a single number instead of a list."""
        if self.task is Task.VALUES:
            return len(self.outputs)
        return len(self.classes) if self.task is Task.MULTICLASS else 0


class PackageFile(Record, frozen=True):
    """A payload file of a package. ``sha256`` is given in addition to BLAKE3, because signing and OCI need it."""

    path: str
    size: int
    blake3: Digest
    sha256: Digest


class Parity(Record, frozen=True):
    """How closely the stored payload reproduces the trained estimator.

    ``rows``: all rows compared, real and made from the signature. ``max_abs_difference``: of probabilities; of a regression in
    units of the spread (standard deviation) of the estimator's answers on real rows.
    """

    rows: int
    max_abs_difference: float
    tolerance: float
    label_mismatches: int
    generated: int = 0
    """Rows made from the signature: nulls, unseen categories, extremes, values beside tree thresholds."""
    judged: int = 0
    """Rows that were not used to choose the form of the payload."""
    refused: int = 0
    """Rows on which the estimator raises an error; the payload answers no number there either."""


class Package(Record, frozen=True, kw_only=True):
    """``model.json``: the manifest of a model package, a directory of data (never code).

    ``format`` picks the loader from a fixed table; nothing else in the package can.
    """

    format_version: int = 1
    format: str
    """A name of the table in ``models.formats.table``: what reads a manifest looks it up."""
    signature: Signature
    files: list[PackageFile]
    created_at: datetime
    run: str | None = None
    dataset_version: str | None = None
    code: str | None = None
    environment: str | None = None
    metrics: dict[str, float] = {}
    parity: Parity | None = None
    libraries: dict[str, str] = {}
    notes: dict[str, Any] = {}
    example: dict[str, Any] = {}
    """One real row of the sample, by column: what a server warms the model up with."""
    null_text: Literal["empty", "none", "nan"] = "empty"
    """What the estimator gets for a null text: ``""`` (packages of 0.1), None or NaN, as it learned it."""
    known: dict[str, list[str | float]] = {}
    """Columns for whose other values the estimator raises an error, with the values that it takes."""


class ModelVersion(Record, frozen=True):
    """A registered version: immutable. ``package`` is the digest of the package's tree object.

    ``dataset_version``/``holdout`` are ids of dataset versions (training rows, locked hold-out rows); ``profile`` is the
    digest of the training profile (records.profile.Profile as JSON), the reference for drift.
    """

    model: str
    version: int
    package: Digest
    format: str
    signature: Signature
    created_at: datetime
    created_by: str
    run: str | None = None
    dataset_version: str | None = None
    holdout: str | None = None
    label: str | None = None
    """Name of the label column in ``dataset_version`` and ``holdout``."""
    profile: Digest | None = None
    code: str | None = None
    environment: str | None = None
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}


class ModelRegistry(Protocol):
    """What other rooms need from the models room."""

    def get_version(self, model: str, selector: Selector = "latest") -> ModelVersion: ...


class AliasEvent(Record, frozen=True):
    """An alias was moved. ``version`` None: the alias was removed. ``event`` is the id of the audit event."""

    model: str
    alias: str
    version: int | None
    previous: int | None
    at: datetime
    actor: str
    reason: str
    event: str
    overridden: list[str] = []
    """The objections to the move that the actor overrode; empty for every other move."""


class ModelInfo(Record, frozen=True, kw_only=True):
    """A registered model in a listing. ``aliases``: name to version, as of now."""

    name: str
    created_at: datetime
    versions: int
    aliases: dict[str, int] = {}
    overridden: dict[str, list[str]] = {}
    """For aliases that were moved by override: the objections."""


class ModelVersionPage(Page, frozen=True, kw_only=True):
    """Versions, newest first."""

    items: list[ModelVersion]


class Approval(Record, frozen=True, kw_only=True):
    """Somebody approved (or refused) a version. ``event`` is the id of the audit event."""

    model: str
    version: int
    approved: bool
    at: datetime
    actor: str
    reason: str
    event: str


class Card(Record, frozen=True, kw_only=True):
    """A model card, generated from what is recorded. ``html`` is one escaped fragment without scripts."""

    model: str
    version: int
    markdown: str
    html: str
