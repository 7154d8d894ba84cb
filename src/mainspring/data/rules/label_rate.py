"""The rule about the share of a class: in the table, by period, by group."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.data.engines import ROW
from mainspring.data.periods import period_keys, period_label
from mainspring.data.profile import arrow_kind
from mainspring.data.rules.base import (
    Check,
    Counts,
    Derived,
    Plan,
    Scan,
    bounds_text,
    check_bounds,
    sum_of_counts,
    zero_or_one,
)
from mainspring.data.rules.values import comparable
from mainspring.records.classes import LabelReader
from mainspring.records.data import Finding, LabelRateRule
from mainspring.records.models import ClassType, Task

_MAX_GROUPS = 50
_MAX_CLASSES = 1_000
_CLASS_TYPES: dict[str, ClassType] = {
    "string": "string",
    "bool": "bool",
    "int64": "int64",
    "float64": "float64",
}
_N, _POSITIVES, _PERIOD = "__n", "positives", "period"


class LabelRateCheck(Check[LabelRateRule]):
    """The rate of the positive class lies within the bounds, in the whole table or in every period and group."""

    record = LabelRateRule

    def columns(self) -> list[str]:
        return [c for c in (self.rule.column, self.rule.period, self.rule.by) if c is not None]

    def validate(self, place: str) -> None:
        check_bounds(self.rule.low, self.rule.high, place)

    def plan(self, table: Scan) -> Plan:  # noqa: ARG002 - groups are not one row of counts
        return Plan()

    def judge(self, table: Scan, plan: Plan, counts: Counts) -> Finding:  # noqa: ARG002
        positive, problem = self._positive(table)
        if problem:
            return self.finding(table, passed=False, failing=table.rows, reason=problem)
        periods = None
        if self.rule.period is not None:
            kind = table.type(self.rule.period)
            if not (pt.is_timestamp(kind) or pt.is_date(kind)):
                reason = f"the period column holds {kind}, not a time"
                return self.finding(table, passed=False, failing=table.rows, reason=reason)
            periods = _Periods(self.rule)
        groups = self._groups(table, positive, periods)
        if periods is not None and periods.unknown:
            reason = "the period column holds times that its zone does not know"
            return self.finding(table, passed=False, failing=table.rows, reason=reason)
        return self._judge_rates(table, groups)

    def _groups(self, table: Scan, positive: Any, periods: _Periods | None) -> pa.Table:
        """Labelled rows, positive ones and the first row of each group, in the order of the first rows."""
        rule, kind = self.rule, table.type(self.rule.column)
        derived: dict[str, Derived] = {}
        if periods is not None:
            derived[_PERIOD] = Derived([str(rule.period)], pa.int64(), periods)
        column = table.column(rule.column)
        if pt.is_decimal(kind):
            derived["hit"] = Derived([rule.column], pa.bool_(), lambda labels: pc.equal(labels, positive))
            hit = nw.col("hit")
        else:
            hit = (column.cast(nw.Float64) if pt.is_floating(kind) else column) == positive
        frame = table.frame([c for c in (rule.column, rule.by) if c], derived)
        known = frame.filter(
            ~column.is_null() & ~column.is_nan() if pt.is_floating(kind) else ~column.is_null()
        )
        keys = [k for k in (_PERIOD if periods else None, table.key(rule.by) if rule.by else None) if k]
        counted = [
            nw.len().cast(nw.Int64).alias(_N),
            sum_of_counts(zero_or_one(hit)).alias(_POSITIVES),
            nw.col(ROW).min().alias(ROW),
        ]
        grouped = known.group_by(*keys).agg(*counted) if keys else known.select(*counted)
        kept = [*([_PERIOD] if periods else []), _N, _POSITIVES, ROW]
        return table.collect(grouped.select(*kept)).sort_by(ROW)

    def _positive(self, table: Scan) -> tuple[Any, str]:
        """The column's value that ``positive`` names (records.classes), or why there is none."""
        rule, kind = self.rule, table.type(self.rule.column)
        class_type: ClassType | None = _CLASS_TYPES.get(arrow_kind(kind))
        if class_type is None:
            return None, f"the column holds {kind}, which is never {rule.positive!r}"
        own = [False, True] if class_type == "bool" else _distinct_values(table, rule.column)
        reader = LabelReader(Task.MULTICLASS, [str(v) for v in own], class_type)
        index = reader.read(rule.positive)
        if index is not None:
            named = own[int(index)]
            return (pa.scalar(named, kind) if isinstance(named, Decimal) else named), ""
        # The class may simply not occur: the rate is 0. A truth value names a number only if the column holds only 0 and 1.
        if type(rule.positive) in (comparable(kind) or set()):
            return _in_column_type(rule.positive, kind), ""
        if class_type != "string" and isinstance(rule.positive, bool) and set(own) <= {0, 1}:
            return _in_column_type(int(rule.positive), kind), ""
        return None, f"the column holds {kind} ({reader.named()}), which is never {rule.positive!r}"

    def _judge_rates(self, table: Scan, groups: pa.Table) -> Finding:
        rule = self.rule
        sizes, positives = (groups.column(n).to_numpy().astype(np.int64) for n in (_N, _POSITIVES))
        rows = int(sizes.sum())
        rate = int(positives.sum()) / rows if rows else None
        judged = sizes >= max(1, rule.min_rows)
        if not judged.any():
            reason = f"insufficient data: {rows} labelled rows, no group of {rule.min_rows}"
            return self.finding(table, passed=True, value=rate, reason=reason)
        rates = positives / np.maximum(sizes, 1)
        bad = np.flatnonzero(judged & ~((rates >= rule.low) & (rates <= rule.high)))
        shown = [
            label | {"rows": int(sizes[i]), "rate": float(rates[i])}
            for i, label in sorted(
                zip(bad, self._labels(table, groups.take(pa.array(bad))), strict=True),
                key=lambda item: [str(v) for v in item[1].values()],
            )[:_MAX_GROUPS]
        ]
        reason = (
            f"{len(bad)} of {int(judged.sum())} groups outside {bounds_text(rule.low, rule.high)}"
            if len(bad)
            else ""
        )
        return self.finding(
            table, passed=not len(bad), failing=int(sizes[bad].sum()), value=rate, reason=reason, groups=shown
        )

    def _labels(self, table: Scan, groups: pa.Table) -> list[dict[str, Any]]:
        """The names of groups as they are shown: a period by its start, a group by the value of its first row."""
        labels: list[dict[str, Any]] = [{} for _ in range(groups.num_rows)]
        if self.rule.period is not None:
            kind = table.type(self.rule.period)
            for label, period in zip(labels, groups.column(_PERIOD).to_pylist(), strict=True):
                label["period"] = period_label(period, kind, self.rule.per)
        if self.rule.by is not None:
            for label, value in zip(
                labels, table.values(self.rule.by, groups.column(ROW).to_numpy()), strict=True
            ):
                label["group"] = value
        return labels


class _Periods:
    """The period of each row. A time that does not exist in the zone makes the whole batch null and sets ``unknown``."""

    def __init__(self, rule: LabelRateRule) -> None:
        self._per = rule.per
        self.unknown = False

    def __call__(self, column: Any) -> pa.Array:
        try:
            return period_keys(column, self._per)
        except pa.ArrowException:
            self.unknown = True
            return pa.nulls(len(column), pa.int64())


def _distinct_values(table: Scan, name: str) -> list[Any]:
    """The first distinct values of a column; stops reading when there are enough."""
    known = pa.array([], table.type(name))
    if pt.is_dictionary(known.type):
        known = known.cast(known.type.value_type)
    for batch in table.source.batches([name]):
        known = pc.unique(pa.concat_arrays([known, batch.column(0).cast(known.type)]))
        if len(known) > _MAX_CLASSES:
            break
    own = known.drop_null().slice(0, _MAX_CLASSES).to_pylist()
    return [v for v in own if not (isinstance(v, float) and math.isnan(v))]


def _in_column_type(positive: Any, kind: pa.DataType) -> Any:
    """A positive value that does not occur, in the type of the column; null, which equals nothing, if the column cannot hold it."""
    if pt.is_decimal(kind):
        try:
            return pa.scalar(Decimal(repr(positive)), kind)
        except (pa.ArrowException, ArithmeticError):
            return pa.scalar(None, kind)
    return positive
