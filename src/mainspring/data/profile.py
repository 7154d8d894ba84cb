"""Profiles from tables and from columns of plain values; merging and reading them.

Profiles of parts merge into the profile of the whole, so the cost of a window depends on its columns, not on its
traffic. Numbers go into a KLL sketch (Karnin, Lang, Liberty 2016; DataSketches' ``kll_doubles_sketch``), exact up
to ``k`` values and within about 1 % of rank beyond (k = 400). Its compaction uses random bits that cannot be seeded: two
profiles of the same large table may differ within that error, which is why a dataset version keeps the first one made.
Categories are counted by name up to 4,096 distinct values; beyond, the rarer ones by hash (``data/categories.py``).

A column has the type of its first values. Values of another type (text for numbers, 0/1 for truth values) are converted
where they read as that type (``data/readings.py``), and are counted as invalid where they do not.

This module imports numpy, but not pyarrow: only callers that pass Arrow tables import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mainspring.data.categories import MAX_COUNTS, Tally
from mainspring.data.columns import Column, arrow_kind, categorical_profile, profile_moments
from mainspring.data.sketches import (
    CATEGORICAL,
    NUMERIC,
    K,
    encode_sketch,
    finite,
    histogram,
    number_sketch_of,
    pool_moments,
    quantiles,
    sketch_of,
)
from mainspring.errors import InvalidInput
from mainspring.records.profile import ColumnProfile, Profile

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CATEGORICAL", "NUMERIC", "K", "ProfileBuilder", "arrow_kind", "column_of", "finite", "histogram", "merge", "profile_of", "quantiles",
]  # fmt: skip


class ProfileBuilder:
    """Builds a :class:`Profile` from any number of batches.

    ``types`` fixes the type of columns (``float64``, ``int64``, ``string``, ``bool``); without it the first batch that has a
    value decides. Values of another type are read as that one, or counted as invalid. A column that is absent from a batch counts
    as null there; a column that appears late counts as null before.

    >>> profile = ProfileBuilder().add({"x": [1.0, 2.0, None], "c": ["a", "a", "b"]}).build()
    >>> [(c.name, c.type, c.nulls) for c in profile.columns]
    [('x', 'float64', 1), ('c', 'string', 0)]
    """

    def __init__(self, *, types: Mapping[str, str] | None = None, k: int = K) -> None:
        self._k = k
        self._rows = 0
        self._columns: dict[str, Column] = {
            name: Column(name, kind, k) for name, kind in (types or {}).items()
        }

    def add(self, data: pa.Table | pa.RecordBatch | Mapping[str, Any]) -> ProfileBuilder:
        """Add rows: an Arrow table or batch, or columns by name (lists, tuples or numpy arrays of equal length)."""
        if isinstance(data, Mapping):
            lengths = {len(values) for values in data.values()}
            if len(lengths) > 1:
                raise InvalidInput("columns differ in length", value=sorted(lengths))
            rows = lengths.pop() if lengths else 0
            for name, values in data.items():
                self._column(name).add(values)
        else:
            rows = data.num_rows
            for name, values in zip(data.schema.names, data.columns, strict=True):
                self._column(name).add_arrow(values)
        self._rows += rows
        for column in self._columns.values():
            column.pad_rows(self._rows)
        return self

    def build(self) -> Profile:
        """The profile of everything added so far."""
        return Profile(rows=self._rows, columns=[c.build() for c in self._columns.values()])

    def _column(self, name: str) -> Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = Column(name, "null", self._k)
            column.pad_rows(self._rows)
        return column


def profile_of(table: pa.Table) -> Profile:
    """The profile of one Arrow table."""
    return ProfileBuilder().add(table).build()


def merge(a: Profile, b: Profile) -> Profile:
    """The profile of the rows of both. Columns of one side only count as null on the other."""
    left = {c.name: c for c in a.columns}
    right = {c.name: c for c in b.columns}
    names = list(left) + [name for name in right if name not in left]
    columns = []
    for name in names:
        left_column = left.get(name) or _null_column(name, a.rows)
        right_column = right.get(name) or _null_column(name, b.rows)
        columns.append(_merge_columns(left_column, right_column))
    return Profile(rows=a.rows + b.rows, columns=columns)


def column_of(profile: Profile, name: str) -> ColumnProfile | None:
    """The column's profile, or None if the profile has no such column."""
    return next((c for c in profile.columns if c.name == name), None)


def _null_column(name: str, rows: int) -> ColumnProfile:
    return ColumnProfile(name=name, type="null", rows=rows, nulls=rows)


def _merge_columns(a: ColumnProfile, b: ColumnProfile) -> ColumnProfile:
    if a.type == "null":
        a, b = b, a
    shared: dict[str, Any] = {
        "name": a.name,
        "type": a.type,
        "rows": a.rows + b.rows,
        "nulls": a.nulls + b.nulls,
        "invalid": a.invalid + b.invalid,
    }
    if a.type in NUMERIC and b.type in NUMERIC | {"null"}:
        kind = "float64" if {a.type, b.type} == {"float64", "int64"} else a.type
        return _merge_numbers(a, b, shared | {"type": kind})
    if b.type not in {a.type, "null"}:
        return Column.of(a).add_profile(b).build()
    tally = Tally.of(a)
    tally.merge(Tally.of(b))
    numbers, more_numbers = number_sketch_of(a), number_sketch_of(b)
    if numbers is not None and more_numbers is not None:
        numbers.merge(more_numbers)
    tally.prune(MAX_COUNTS)
    return categorical_profile(shared, tally, numbers if more_numbers is not None else None)


def _merge_numbers(a: ColumnProfile, b: ColumnProfile, shared: dict[str, Any]) -> ColumnProfile:
    sketch, more_sketch = sketch_of(a), sketch_of(b)
    if sketch is None or more_sketch is None:
        filled = b if sketch is None else a
        return ColumnProfile(
            **shared,
            kll=filled.kll,
            low=filled.low,
            high=filled.high,
            mean=filled.mean,
            std=filled.std,
            k=filled.k,
        )
    sketch.merge(more_sketch)
    _, mean, std = pool_moments(profile_moments(a), profile_moments(b))
    return ColumnProfile(
        **shared,
        kll=encode_sketch(sketch),
        low=min(v for v in (a.low, b.low) if v is not None),
        high=max(v for v in (a.high, b.high) if v is not None),
        mean=mean,
        std=std,
        k=int(sketch.k),
    )
