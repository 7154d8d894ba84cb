"""A reference profile cut into bins, so that windows are compared (and added up) as plain counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from mainspring.data.profile import CATEGORICAL, NUMERIC, finite, histogram, quantiles
from mainspring.monitoring.statistics import Floats
from mainspring.records.profile import ColumnProfile, Profile

MAX_CATEGORIES = 50
MISSING = "missing"
OTHER = "other"


class BinnedColumn:
    """One reference column: bin 0 holds nulls and invalid values, the rest its quantile bins or its categories.

    A value so frequent that it fills a quantile bin alone gets a bin of exactly itself, so constants and discrete numbers work.
    ``reason`` says why the column cannot be compared, if so.
    """

    def __init__(self, column: ColumnProfile, bins: int) -> None:
        self.name = column.name
        self.type = column.type
        self.profile = column
        self.reason = ""
        self.edges: list[float] = []
        self.categories: list[str] = []
        if finite(column) <= 0:
            self.reason = "the reference holds no value of it"
        elif column.type in NUMERIC and column.kll is not None:
            self.edges = cut_points(column, bins)
        elif column.type in CATEGORICAL:
            self.categories = list(column.counts)[:MAX_CATEGORIES]
        else:
            self.reason = f"columns of type {column.type} are not compared"
        self.labels = self._labels()
        self.reference = self.count(column)

    def count(self, column: ColumnProfile | None) -> Floats:
        """Counts of a window's column in these bins; an absent one counts nothing, one of another type is invalid."""
        out = np.zeros(len(self.labels))
        if column is None or self.reason:
            return out
        values = max(0, finite(column))
        out[0] = column.nulls + column.invalid
        if self.categories:
            if column.type not in CATEGORICAL:
                out[0] += values
                return out
            known = [column.counts.get(c, 0) for c in self.categories]
            out[1:-1] = known
            out[-1] = max(0, values - sum(known))
        elif column.type in NUMERIC:
            out[1:] = histogram(column, self.edges)
        else:
            out[0] += values
        return out

    def _labels(self) -> list[str]:
        if self.categories:
            return [MISSING, *self.categories, OTHER]
        if not self.edges:
            return [MISSING, "any"]
        shown = [f"{e:.6g}" for e in self.edges]
        middle = [f"[{a}, {b})" for a, b in pairwise(shown)]
        return [MISSING, f"< {shown[0]}", *middle, f">= {shown[-1]}"]


class Reference:
    """All comparable columns of a reference profile."""

    def __init__(
        self,
        profile: Profile,
        *,
        name: str,
        bins: int,
        only: Collection[str] | None = None,
        ignore: Collection[str] = (),
    ) -> None:
        self.name = name
        self.rows = profile.rows
        self.columns = {
            c.name: BinnedColumn(c, bins)
            for c in profile.columns
            if c.name not in ignore and (only is None or c.name in only)
        }

    def count(self, profiles: Sequence[Profile]) -> dict[str, Floats]:
        """Counts of several parts of a window, added up."""
        out = {name: np.zeros(len(column.labels)) for name, column in self.columns.items()}
        for profile in profiles:
            present = {c.name: c for c in profile.columns}
            for name, column in self.columns.items():
                got = present.get(name)
                if got is None:
                    out[name][0] += profile.rows  # a column that is not there is missing in every row
                else:
                    out[name] += column.count(got)
        return out


def cut_points(column: ColumnProfile, bins: int) -> list[float]:
    """Finite, increasing cut points at the quantiles ``1/bins ..``; a repeated one is followed by the next float."""
    cuts: list[float] = []
    for value in quantiles(column, [i / bins for i in range(1, bins)]):
        if not math.isfinite(value):
            continue
        if not cuts or value > cuts[-1]:
            cuts.append(value)
        elif value == cuts[-1] or (len(cuts) > 1 and value == cuts[-2]):
            after = math.nextafter(value, math.inf)
            if math.isfinite(after) and after > cuts[-1]:
                cuts.append(after)
    return cuts
