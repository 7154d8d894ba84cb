"""Datasets: versions, differences, check rules and their findings.

A check rule is written in ``mainspring.toml`` (or sent to an operation) as a table whose ``check`` names the rule::

    [data.flights]
    checks = [
      { check = "not_null", column = "origin" },
      { check = "range", column = "distance", min = 1, max = 5000 },
      { check = "label_rate", column = "late", low = 0.05, high = 0.6, per = "day", refuse = false },
    ]
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from mainspring.records.base import Digest, Duration, Page, Record
from mainspring.records.reading import ReadReport


class TableColumn(Record, frozen=True):
    """A column of a table version. ``type`` is e.g. ``int64``, ``float64``, ``string``, ``timestamp[us, tz=UTC]``."""

    name: str
    type: str


class DatasetInfo(Record, frozen=True):
    """A dataset as listed: its newest version, and how many there are."""

    name: str
    versions: int
    latest: int
    latest_id: Digest
    kind: Literal["table", "files"]
    rows: int | None
    bytes: int
    created_at: datetime
    updated_at: datetime


class DatasetVersion(Record, frozen=True):
    """An immutable version. Its ``id`` is the digest of its content, so equal content has an equal id everywhere.

    For a table that is the canonical digest of schema and rows in order, independent of the file that carries them; for
    files it is the digest of their tree. ``number`` counts commits of this dataset, from 1. ``tree`` is the stored
    tree object (path to object), ``bytes`` the size of what it names before deduplication. ``reading`` says how its source was
    read when it was first committed (None: nothing was converted, or it holds files).
    """

    id: Digest
    dataset: str
    number: int
    kind: Literal["table", "files"]
    content_digest: Digest
    tree: Digest
    rows: int | None
    columns: list[TableColumn]
    bytes: int
    files: int
    message: str
    created_at: datetime
    created_by: str
    tags: list[str] = []
    reading: ReadReport | None = None


class VersionPage(Page, frozen=True, kw_only=True):
    items: list[DatasetVersion]


class FileEntry(Record, frozen=True):
    """A file of a version."""

    path: str
    digest: Digest
    size: int


# --- check rules -----------------------------------------------------------------------------------------------------


class Rule(Record, frozen=True, kw_only=True, tag_field="check"):
    """``refuse``: a breach prevents the commit of the version; otherwise it is only reported."""

    refuse: bool = True


class TypeRule(Rule, frozen=True, kw_only=True, tag="type"):
    """The column holds this type. ``number`` is any integer, float or decimal; text that spells numbers is not a number."""

    column: str
    type: Literal["number", "int64", "float64", "string", "bool", "timestamp", "date"]


class NotNullRule(Rule, frozen=True, kw_only=True, tag="not_null"):
    """At most this share (0 to 1) of the column is null; NaN counts as null."""

    column: str
    max_null_share: float = 0.0


class RangeRule(Rule, frozen=True, kw_only=True, tag="range"):
    """Every value that is not null lies in ``[min, max]``; NaN does not. Whole numbers and decimals are compared exactly."""

    column: str
    min: int | float | None = None
    max: int | float | None = None


class SetRule(Rule, frozen=True, kw_only=True, tag="set"):
    """Every value that is not null is one of ``allowed``."""

    column: str
    allowed: list[str | int | float | bool]


class RegexRule(Rule, frozen=True, kw_only=True, tag="regex"):
    """Every value that is not null matches the whole ``pattern`` (RE2 syntax: linear time, no look-around)."""

    column: str
    pattern: str


class UniqueRule(Rule, frozen=True, kw_only=True, tag="unique"):
    """No two rows agree in all of ``columns``; null equals null here."""

    columns: list[str]


class RowCountRule(Rule, frozen=True, kw_only=True, tag="row_count"):
    """The table has between ``min`` and ``max`` rows."""

    min: int | None = None
    max: int | None = None


class FreshnessRule(Rule, frozen=True, kw_only=True, tag="freshness"):
    """The newest time in ``column`` is no older than ``max_age`` before policy time, and no time is in the future.

    A time may be ``tolerance`` ahead of policy time; by default 5 minutes if the column has a zone, else 14 hours more, since
    dates and times without a zone are taken as of UTC and may be of a zone ahead of it.
    """

    column: str
    max_age: Duration
    tolerance: Duration | None = None


class LabelRateRule(Rule, frozen=True, kw_only=True, tag="label_rate"):
    """The share of ``positive`` among the non-null values lies in ``[low, high]``.

    With ``period`` (a time column) it must hold ``per`` hour, day or month, by the clock of the column's zone if it has one; with
    ``by`` for every value of that column (rows without one are a group, and so are those with NaN). Groups of fewer than ``min_rows`` labelled rows are not judged.
    """

    column: str
    low: float
    high: float
    positive: str | int | float | bool = True
    period: str | None = None
    per: Literal["hour", "day", "month"] = "day"
    by: str | None = None
    min_rows: int = 30


CheckRule = (
    TypeRule
    | NotNullRule
    | RangeRule
    | SetRule
    | RegexRule
    | UniqueRule
    | RowCountRule
    | FreshnessRule
    | LabelRateRule
)
"""Any rule; its field ``check`` names which one."""


class FailedRow(Record, frozen=True):
    """A row that broke a rule: its number from 0 and its values as JSON can carry them."""

    row: int
    values: dict[str, Any]


class Finding(Record, frozen=True):
    """The result of one rule. ``failing`` counts rows (for ``row_count``, and for ``freshness`` without a row in the future: 1 if breached).

    ``value`` is what was measured (null share, row count, newest time in seconds since the epoch, rate); ``groups`` are
    the groups that broke a ``label_rate``; ``sample`` holds at most 10 failing rows.
    """

    rule: CheckRule
    passed: bool
    rows: int
    failing: int = 0
    value: float | None = None
    reason: str = ""
    groups: list[dict[str, Any]] = []
    sample: list[FailedRow] = []


class CheckReport(Record, frozen=True):
    """All rules over one table. ``refused``: a rule with ``refuse`` was breached. ``version`` None: never committed.

    ``damaged``: what is wrong with the event that holds this report, if it cannot be read; then nothing else is known of the check.
    """

    dataset: str
    version: Digest | None
    rows: int
    passed: bool
    refused: bool
    findings: list[Finding]
    at: datetime
    event: str | None = None
    damaged: str = ""


# --- differences -----------------------------------------------------------------------------------------------------


class FileDiff(Record, frozen=True):
    """Paths that differ between two trees."""

    added: list[str] = []
    removed: list[str] = []
    changed: list[str] = []
    unchanged: int = 0


class ColumnChange(Record, frozen=True):
    name: str
    before: str | None
    after: str | None


class ChangedRow(Record, frozen=True):
    """A row with the same key on both sides; ``before`` and ``after`` hold only the columns that differ."""

    key: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


class RowDiff(Record, frozen=True):
    """Rows that differ, over the columns that both sides have. Counts are exact, samples hold at most 10 rows.

    Without ``key`` rows are compared as a bag: a changed row counts as one removed and one added. ``reordered``: the same
    rows in another order.
    """

    key: list[str]
    added: int
    removed: int
    changed: int
    unchanged: int
    reordered: bool = False
    added_sample: list[dict[str, Any]] = []
    removed_sample: list[dict[str, Any]] = []
    changed_sample: list[ChangedRow] = []


class DatasetDiff(Record, frozen=True):
    """From version ``before`` to version ``after``."""

    dataset: str
    before: int
    after: int
    same: bool
    files: FileDiff
    columns: list[ColumnChange]
    rows: RowDiff | None = None
