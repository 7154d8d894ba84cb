"""Rules about rows as a whole: how many there are, and that none repeats another."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np

from mainspring.data.engines import ROW
from mainspring.data.rules.base import Check, Counts, Plan, Scan, bounds_text, check_bounded, check_bounds
from mainspring.data.shown import MAX_SAMPLE
from mainspring.data.values import equal_mask
from mainspring.errors import InvalidInput
from mainspring.records.data import Finding, RowCountRule, UniqueRule

_N = "__n"


class RowCountCheck(Check[RowCountRule]):
    """The number of rows lies within the bounds."""

    record = RowCountRule

    def columns(self) -> list[str]:
        return []

    def validate(self, place: str) -> None:
        check_bounded(self.rule.min, self.rule.max, place)
        check_bounds(self.rule.min, self.rule.max, place)

    def plan(self, table: Scan) -> Plan:  # noqa: ARG002 - the count is known
        return Plan()

    def judge(self, table: Scan, plan: Plan, counts: Counts) -> Finding:  # noqa: ARG002
        rule, rows = self.rule, table.rows
        passed = (rule.min is None or rows >= rule.min) and (rule.max is None or rows <= rule.max)
        reason = "" if passed else f"{rows} rows, wanted {bounds_text(rule.min, rule.max)}"
        return self.finding(table, passed=passed, failing=int(not passed), value=float(rows), reason=reason)


class UniqueCheck(Check[UniqueRule]):
    """No two rows have the same key; null equals null, and NaN equals NaN."""

    record = UniqueRule

    def columns(self) -> list[str]:
        return list(self.rule.columns)

    def validate(self, place: str) -> None:
        if not self.rule.columns:
            raise InvalidInput("name at least one column", place=place)

    def plan(self, table: Scan) -> Plan:  # noqa: ARG002 - groups are not one row of counts
        return Plan()

    def judge(self, table: Scan, plan: Plan, counts: Counts) -> Finding:  # noqa: ARG002
        keys = list(dict.fromkeys(table.key(c) for c in self.rule.columns))
        groups = table.frame(self.rule.columns).group_by(*keys).agg(nw.len().cast(nw.Int64).alias(_N), nw.col(ROW).min().alias(ROW)).filter(nw.col(_N) > 1)  # fmt: skip
        failing = int(table.scalars(groups, {_N: nw.col(_N).sum().cast(nw.Int64)})[_N] or 0)
        if not failing:
            return self.finding(table, passed=True)
        # The first ten failing rows are in the ten groups that begin first, so more groups need not be read.
        begins = table.collect(groups.select(ROW).sort(ROW).head(MAX_SAMPLE)).column(ROW).to_pylist()
        sample = self.sample(table, self._find_rows_like(table, begins))
        return self.finding(
            table, passed=False, failing=failing, reason=f"{failing} rows share their key", sample=sample
        )

    def _find_rows_like(self, table: Scan, begins: list[int]) -> list[int]:
        """The first rows that have the key of one of these rows; reads no further than the last row to show."""
        known: list[list[Any]] = [[] for _ in begins]
        numbers: list[int] = []
        for first, columns in table.keys(self.rule.columns):
            size = len(columns[0])
            for at, begin in enumerate(begins):
                if first <= begin < first + size:
                    known[at] = [column[begin - first] for column in columns]
            like = np.zeros(size, dtype=bool)
            for key in filter(None, known):
                same = [equal_mask(column, value) for column, value in zip(columns, key, strict=True)]
                like |= np.logical_and.reduce(same)
            numbers += (first + np.flatnonzero(like)[: MAX_SAMPLE - len(numbers)]).tolist()
            if len(numbers) == MAX_SAMPLE:
                break
        return numbers
