"""The base class of check rules, and the table that they check.

A rule is one subclass of :class:`Check` in a module of this folder; defining it registers it. It names its columns, refuses wrong
parameters, states what to count, and makes a finding of the counts. All rules are counted by one select, which reads the table
once; only a rule that failed (or that needs groups) reads its own columns a second time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import narwhals as nw
import pyarrow as pa

from mainspring.data.engines import ROW, Source, Stream, TableEngine
from mainspring.data.shown import MAX_SAMPLE, plain_rows, plain_values
from mainspring.data.values import decode_column, engine_column, row_numbers
from mainspring.errors import InvalidInput
from mainspring.records.data import FailedRow, Finding, Rule

_MAX_COLUMNS_SHOWN = 40
FAILING = "failing"
R = TypeVar("R", bound=Rule)
_CHECKS: dict[type[Rule], type[Check[Any]]] = {}


@dataclass(frozen=True)
class Derived:
    """A column computed from columns of the table, in Arrow and batch by batch: for expressions whose results differ between engines."""

    columns: Sequence[str]
    type: pa.DataType
    make: Callable[..., Any]
    """Takes the columns of one batch as chunked arrays; returns a column of ``type``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the one select over the table counts for a rule.

    Rows where ``mask`` is true break the rule, and are counted as ``failing``; null is not true. ``counts`` are further aggregates
    by name, ``derived`` the columns that these expressions need in addition to the rule's own. ``reason`` is the finding's, if the rule
    fails. ``verdict``: the rule holds or fails independent of the rows; a mask then only selects rows to show.
    """

    mask: nw.Expr | None = None
    counts: Mapping[str, nw.Expr] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)
    reason: str = ""
    verdict: bool | None = None


Counts = Mapping[str, Any]
"""The results of the select for one rule: ``failing``, and the names in its ``counts``."""


class Check(ABC, Generic[R]):
    """How one rule is checked. A subclass names its record, and overrides what differs for it."""

    record: ClassVar[type[Rule]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "record" in cls.__dict__:
            if cls.record in _CHECKS:
                raise TypeError(f"two classes check {cls.record.__name__}")
            _CHECKS[cls.record] = cls

    def __init__(self, rule: R, number: int = 0) -> None:
        self.rule = rule
        self._number = number

    def columns(self) -> list[str]:
        """The columns that the rule reads, those to show first."""
        return [self.rule.column]  # type: ignore[attr-defined]

    def validate(self, place: str) -> None:
        """Check the parameters of the rule, without a table; raises :class:`InvalidInput` naming ``place``."""

    @abstractmethod
    def plan(self, table: Scan) -> Plan:
        """What to count in a table with these columns."""

    def judge(self, table: Scan, plan: Plan, counts: Counts) -> Finding:
        """The finding. This implementation is for rules where at most the share :meth:`allowed` of the rows may fail."""
        failing = counts.get(FAILING, 0)
        if plan.verdict is True:
            return self.finding(table, passed=True)
        if plan.verdict is False:
            sample = self.sample(table, table.find_first(self, plan, plan.mask if failing else None))
            return self.finding(
                table, passed=False, failing=failing or table.rows, reason=plan.reason, sample=sample
            )
        share = failing / table.rows if table.rows else 0.0
        if share <= self.allowed():
            return self.finding(table, passed=True, failing=failing, value=share)
        reason = plan.reason or f"{failing} of {table.rows} rows"
        sample = self.sample(table, table.find_first(self, plan, plan.mask))
        return self.finding(table, passed=False, failing=failing, value=share, reason=reason, sample=sample)

    def allowed(self) -> float:
        """The share of rows that may fail."""
        return 0.0

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def name(self, what: str) -> str:
        """A name for a derived column or a count that no other rule has."""
        return f"r{self._number}_{what}"

    def finding(self, table: Scan, *, passed: bool, **facts: Any) -> Finding:
        """A finding of this rule; ``facts`` are further fields of the record."""
        return Finding(rule=self.rule, passed=passed, rows=table.rows, **facts)  # type: ignore[arg-type]

    def sample(self, table: Scan, numbers: Sequence[int]) -> list[FailedRow]:
        """These rows with their values as JSON can carry them, the rule's own columns first."""
        first = self.columns()
        names = [*first, *(n for n in table.schema.names if n not in first)][:_MAX_COLUMNS_SHOWN]
        rows = plain_rows(table.source.take(numbers, names))
        return [FailedRow(row=number, values=row) for number, row in zip(numbers, rows, strict=True)]


def check_of(rule: Rule, number: int = 0) -> Check[Any]:
    """The check of a rule; ``number`` is its place among those that are checked together."""
    return _CHECKS[type(rule)](rule, number)


class Scan:
    """A table under check: expressions over its columns, frames of the engine, rows by their number."""

    def __init__(self, source: Source, engine: TableEngine, *, now: datetime) -> None:
        self.source, self.engine, self.now = source, engine, now
        self.schema, self.rows = source.schema, source.rows
        self._names = {name: f"c{i}" for i, name in enumerate(self.schema.names)}

    def type(self, name: str) -> pa.DataType:
        """The type of a column as the table holds it."""
        return self.schema.field(name).type

    def column(self, name: str) -> nw.Expr:
        """A column of the table in an expression. Times are whole numbers of their unit there, wide decimals text."""
        return nw.col(self._names[name])

    def key(self, name: str) -> str:
        """The name of a column in a frame."""
        return self._names[name]

    def frame(
        self, columns: Iterable[str], derived: Mapping[str, Derived] | None = None
    ) -> nw.LazyFrame[Any]:
        """A frame of these columns, the derived ones and the row numbers."""
        return self.engine.frame(self._stream(list(dict.fromkeys(columns)), derived or {}))

    def collect(self, frame: nw.LazyFrame[Any]) -> pa.Table:
        """Run a query with a small result."""
        return self.engine.collect(frame)

    def scalars(self, frame: nw.LazyFrame[Any], aggregates: Mapping[str, nw.Expr]) -> dict[str, Any]:
        """The values of these aggregates."""
        if not aggregates:
            return {}
        row: dict[str, Any] = self.collect(
            frame.select(*(e.alias(n) for n, e in aggregates.items()))
        ).to_pylist()[0]
        return row

    def find_first(self, check: Check[Any], plan: Plan, mask: nw.Expr | None) -> list[int]:
        """The numbers of the first rows where ``mask`` is true (None: of the first rows)."""
        if mask is None:
            return list(range(min(self.rows, MAX_SAMPLE)))
        bad = self.frame(check.columns(), plan.derived).filter(mask)
        numbers = self.collect(bad.select(ROW).sort(ROW).head(MAX_SAMPLE))
        return [int(n) for n in numbers.column(ROW).to_pylist()]

    def values(self, name: str, numbers: Sequence[int]) -> list[Any]:
        """The values of a column in these rows, as JSON can carry them."""
        return plain_values(self.source.take(numbers, [name]).column(name))

    def keys(self, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        """These columns as the engine gets them, batch by batch, with the number of each batch's first row."""
        first = 0
        for batch in self.source.batches(columns):
            yield first, [engine_column(decode_column(c)) for c in batch.columns]
            first += batch.num_rows

    def _stream(self, columns: list[str], derived: Mapping[str, Derived]) -> Stream:
        read = list(dict.fromkeys([*columns, *(c for d in derived.values() for c in d.columns)]))
        fields = [
            pa.field(self._names[c], engine_column(decode_column(pa.array([], self.type(c)))).type)
            for c in columns
        ]
        fields += [pa.field(name, d.type) for name, d in derived.items()]
        schema = pa.schema([*fields, pa.field(ROW, pa.int64())])

        def batches() -> Iterator[pa.RecordBatch]:
            first = 0
            for batch in self.source.batches(read):
                raw = {c: decode_column(batch.column(c)) for c in read}
                arrays = [engine_column(raw[c]) for c in columns]
                arrays += [d.make(*(raw[c] for c in d.columns)) for d in derived.values()]
                numbers = row_numbers(first, batch.num_rows)
                yield pa.RecordBatch.from_arrays([*map(_to_array, arrays), numbers], schema=schema)
                first += batch.num_rows

        return Stream(schema, batches)


def zero_or_one(mask: nw.Expr) -> nw.Expr:
    """1 where the mask is true, else 0, also where it is null (a comparison with a null)."""
    return nw.when(mask).then(nw.lit(1)).otherwise(nw.lit(0))


def sum_of_counts(numbers: nw.Expr) -> nw.Expr:
    """The sum of whole numbers as int64. The cast before the sum is for Spark, which cannot add truth values; the one after it for DuckDB, which widens."""
    return numbers.cast(nw.Int64).sum().cast(nw.Int64)


def check_bounds(low: float | None, high: float | None, place: str) -> None:
    """Refuse bounds that no value can lie between. Raises :class:`InvalidInput`."""
    if any(b is not None and b != b for b in (low, high)):  # noqa: PLR0124 - NaN is what does not equal itself
        raise InvalidInput("a bound is a number", value="nan", place=place)
    if low is not None and high is not None and low > high:
        raise InvalidInput("the lower bound is above the upper one", value=[low, high], place=place)


def check_bounded(low: float | None, high: float | None, place: str) -> None:
    """Refuse a rule without any bound. Raises :class:`InvalidInput`."""
    if low is None and high is None:
        raise InvalidInput(
            "a rule without a bound holds always", place=place, next_step="Give min, max or both."
        )


def bounds_text(low: float | None, high: float | None) -> str:
    """Bounds as text for messages."""
    if low is None:
        return f"at most {_bound_text(high)}"
    return f"at least {_bound_text(low)}" if high is None else f"{_bound_text(low)} to {_bound_text(high)}"


def _bound_text(bound: float | None) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _to_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
