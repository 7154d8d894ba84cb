"""The rule about how new a table is."""

from __future__ import annotations

from datetime import timedelta

import narwhals as nw
import pyarrow as pa
import pyarrow.types as pt

from mainspring.data.periods import (
    ANY_ZONE_S,
    ZONED_TOLERANCE_S,
    moment_text,
    moments,
    per_second,
    whole_units,
)
from mainspring.data.rules.base import FAILING, Check, Counts, Derived, Plan, Scan
from mainspring.records.base import seconds
from mainspring.records.data import Finding, FreshnessRule

_NEWEST = "newest"


class FreshnessCheck(Check[FreshnessRule]):
    """The newest row that is not in the future is new enough, and no row is in the future."""

    record = FreshnessRule

    def validate(self, place: str) -> None:  # noqa: ARG002 - the error of a duration needs no place
        seconds(self.rule.max_age)

    def plan(self, table: Scan) -> Plan:
        kind = table.type(self.rule.column)
        if not (pt.is_timestamp(kind) or pt.is_date(kind)):
            return Plan(reason=f"the column holds {kind}, not a time", verdict=False)
        tolerance = self.rule.tolerance
        zoned = pt.is_timestamp(kind) and kind.tz is not None
        ahead = seconds(tolerance) if tolerance is not None else ZONED_TOLERANCE_S if zoned else ANY_ZONE_S
        limit = whole_units(table.now + timedelta(seconds=ahead), per_second(kind))
        at = nw.col(self.name("at"))
        return Plan(
            mask=at > limit,
            counts={_NEWEST: nw.when(at <= limit).then(at).max()},
            derived={self.name("at"): Derived([self.rule.column], pa.int64(), moments)},
        )

    def judge(self, table: Scan, plan: Plan, counts: Counts) -> Finding:
        if plan.verdict is not None:
            return self.finding(table, passed=False, failing=1, reason=plan.reason)
        future, newest, unit = counts[FAILING], counts[_NEWEST], per_second(table.type(self.rule.column))
        first = table.find_first(self, plan, plan.mask) if future else []
        reasons = []
        if future:
            reasons.append(
                f"{future} rows are in the future, e.g. {table.values(self.rule.column, first[:1])[0]}"
            )
        if newest is None:
            reasons.append("no row is in the past" if future else "the column holds no time at all")
        elif (whole_units(table.now, unit) - newest) / unit > seconds(self.rule.max_age):
            reasons.append(
                f"the newest row is of {self._newest_text(table, plan, newest)}, older than {self.rule.max_age}"
            )
        return self.finding(
            table,
            passed=not reasons,
            failing=future or int(bool(reasons)),
            value=None if newest is None else newest / unit,
            reason="; ".join(reasons),
            sample=self.sample(table, first) if future else [],
        )

    def _newest_text(self, table: Scan, plan: Plan, newest: int) -> str:
        column = self.rule.column
        known = moment_text(newest, per_second(table.type(column)))
        if known is not None:
            return known
        at = table.find_first(self, plan, nw.col(self.name("at")) == newest)
        return str(table.values(column, at[:1])[0])
