"""Profiles from tables and from columns of plain values; merging and reading them.

A profile is a sum: profiles of parts merge into the profile of the whole, so a window's cost follows its columns, not
its traffic. Numbers go into a KLL sketch (Karnin, Lang, Liberty 2016; DataSketches' ``kll_doubles_sketch``), exact up
to ``k`` values and within about 1 % of rank beyond (k = 400). Its compaction flips coins that cannot be seeded: two
profiles of the same large table may differ within that error, which is why a dataset version keeps the first one made.
Categories are counted exactly up to 4,096 distinct values and pruned to the most frequent beyond.

numpy is imported here; pyarrow only by whoever passes an Arrow table.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np
from datasketches import kll_doubles_sketch

from mainspring.errors import InvalidInput
from mainspring.records.profile import ColumnProfile, Profile

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

K = 400
"""Size parameter of the sketches we make: rank error 0.7 %, at most 10 kB per column."""

MAX_COUNTS = 256
_MAX_WORKING = 4096
_MAX_KEY = 128

NUMERIC = frozenset({"float64", "int64", "timestamp"})
CATEGORICAL = frozenset({"string", "bool"})
_NONE = type(None)


class ProfileBuilder:
    """Builds a :class:`Profile` from any number of batches.

    ``types`` fixes the type of columns (``float64``, ``int64``, ``string``, ``bool``): values of another type are then
    counted as invalid. Without it the first batch that has a value decides. A column that is absent from a batch counts
    as null there; a column that appears late counts as null before.

    >>> profile = ProfileBuilder().add({"x": [1.0, 2.0, None], "c": ["a", "a", "b"]}).build()
    >>> [(c.name, c.type, c.nulls) for c in profile.columns]
    [('x', 'float64', 1), ('c', 'string', 0)]
    """

    def __init__(self, *, types: Mapping[str, str] | None = None, k: int = K) -> None:
        self._k = k
        self._rows = 0
        self._columns: dict[str, _Column] = {
            name: _Column(name, kind, k) for name, kind in (types or {}).items()
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
            column.pad(self._rows)
        return self

    def build(self) -> Profile:
        """The profile of everything added so far."""
        return Profile(rows=self._rows, columns=[c.build() for c in self._columns.values()])

    def _column(self, name: str) -> _Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column(name, "null", self._k)
            column.pad(self._rows)
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
        one = left.get(name) or _absent(name, a.rows)
        two = right.get(name) or _absent(name, b.rows)
        columns.append(_merged(one, two))
    return Profile(rows=a.rows + b.rows, columns=columns)


def column_of(profile: Profile, name: str) -> ColumnProfile | None:
    """The column's profile, or None if the profile has no such column."""
    return next((c for c in profile.columns if c.name == name), None)


def finite(column: ColumnProfile) -> int:
    """How many values the sketch or the counts of this column hold."""
    return column.rows - column.nulls - column.invalid


def quantiles(column: ColumnProfile, ps: Sequence[float]) -> list[float]:
    """Values at the ranks ``ps`` (each 0 to 1); an empty list if the column holds no finite number."""
    bad = [p for p in ps if not 0 <= p <= 1]
    if bad:
        raise InvalidInput("a rank is between 0 and 1", value=bad[0])
    sketch = _sketch(column)
    if sketch is None or sketch.is_empty() or not ps:
        return []
    return [float(v) for v in sketch.get_quantiles(list(ps))]


def histogram(column: ColumnProfile, edges: Sequence[float]) -> list[float]:
    """Counts of values in the ``len(edges) + 1`` bins that the cut points make.

    Bins are ``(-inf, e0), [e0, e1), .. [en, inf)``: nothing falls outside. Cut points must be finite and increasing. Counts
    are estimates beyond ``k`` values and add up to the finite values of the column.
    """
    if any(not math.isfinite(e) for e in edges) or any(a >= b for a, b in pairwise(edges)):
        raise InvalidInput("cut points must be finite and strictly increasing", value=list(edges))
    sketch = _sketch(column)
    if sketch is None or sketch.is_empty():
        return [0.0] * (len(edges) + 1)
    if not edges:
        return [float(sketch.n)]
    n = sketch.n
    return [max(0.0, float(share) * n) for share in sketch.get_pmf(list(edges))]


class _Column:
    """What is known of one column while it is being built."""

    def __init__(self, name: str, kind: str, k: int) -> None:
        self.name, self.kind, self.k = name, kind, k
        self.rows = self.nulls = self.invalid = self.other = 0
        self.moments = _EMPTY
        self.low, self.high = math.inf, -math.inf
        self.sketch: Any = None
        self.counts: Counter[str] = Counter()

    def pad(self, rows: int) -> None:
        self.nulls += rows - self.rows
        self.rows = rows

    def add(self, values: Any) -> None:
        """Plain values: a list, a tuple or a numpy array."""
        self.rows += len(values)
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
            self._settle({"f": "float64", "b": "bool"}.get(values.dtype.kind, "int64"))
            if self.kind in NUMERIC and values.dtype.kind != "b":
                self._numbers(values.astype(np.float64, copy=False))
            elif self.kind == "bool" and values.dtype.kind == "b":
                yes = int(values.sum())
                self._categories({"true": yes, "false": len(values) - yes})
            else:
                self.invalid += len(values)
            return
        self._objects(values.tolist() if isinstance(values, np.ndarray) else values)

    def _objects(self, values: Sequence[Any]) -> None:
        present = set(map(type, values))
        if any(issubclass(kind, np.generic) for kind in present):
            values = [v.item() if isinstance(v, np.generic) else v for v in values]
            present = set(map(type, values))
        if _NONE in present:
            present.discard(_NONE)
            size = len(values)
            values = [v for v in values if v is not None]
            self.nulls += size - len(values)
        if not present:
            return
        self._settle(_kind_of(present))
        wanted = _PYTHON.get(self.kind, set())
        if not present <= wanted:
            size = len(values)
            values = [v for v in values if type(v) in wanted]
            self.invalid += size - len(values)
        if self.kind in NUMERIC:
            self._numbers(_floats(values))
        elif self.kind == "bool":
            self._categories({"true": (yes := sum(values)), "false": len(values) - yes})
        else:
            self._categories(Counter(values))

    def add_arrow(self, values: Any) -> None:
        """An Arrow array or chunked array."""
        import pyarrow as pa

        self.rows += len(values)
        self.nulls += values.null_count
        valid = values.drop_null() if values.null_count else values
        if not len(valid):
            return
        kind = arrow_kind(values.type)
        self._settle(kind)
        numeric = self.kind in NUMERIC and kind in NUMERIC
        if numeric:
            self._numbers(_arrow_floats(valid))
        elif self.kind == kind and kind in CATEGORICAL:
            if pa.types.is_dictionary(valid.type):
                valid = valid.cast(valid.type.value_type)
            counted = valid.value_counts()
            keys = counted.field("values").to_pylist()
            keys = ["true" if v else "false" for v in keys] if kind == "bool" else keys
            self._categories(dict(zip(keys, counted.field("counts").to_pylist(), strict=True)))
        elif self.kind in NUMERIC | CATEGORICAL:
            self.invalid += len(valid)
        else:
            self.other += len(valid)

    def _settle(self, kind: str) -> None:
        if self.kind == "null":
            self.kind = kind
        elif self.kind == "int64" and kind == "float64" and self.sketch is not None:
            self.kind = "float64"

    def _numbers(self, values: Floats) -> None:
        good = np.isfinite(values)
        if not good.all():
            values = values[good]
            self.invalid += good.size - values.size
        if not values.size:
            return
        if self.sketch is None:
            self.sketch = kll_doubles_sketch(self.k)
        self.sketch.update(
            values if values.flags.writeable else values.copy()
        )  # the binding refuses Arrow's read-only buffers
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.moments = _pooled(self.moments, _moments(values, max(abs(low), abs(high))))

    def _categories(self, counted: Mapping[str, int]) -> None:
        counts = self.counts
        for value, count in counted.items():
            if count:
                counts[_key(value)] += count
        if len(counts) > _MAX_WORKING:
            kept = _most_frequent(counts, _MAX_WORKING // 4)
            self.other += sum(counts.values()) - sum(kept.values())
            self.counts = Counter(kept)

    def build(self) -> ColumnProfile:
        shared: dict[str, Any] = {
            "name": self.name,
            "type": self.kind,
            "rows": self.rows,
            "nulls": self.nulls,
            "invalid": self.invalid,
        }
        n, mean, std = self.moments
        if self.sketch is not None and n:
            kll = base64.b64encode(self.sketch.serialize()).decode()
            return ColumnProfile(
                **shared, kll=kll, low=self.low, high=self.high, mean=mean, std=std, k=int(self.sketch.k)
            )
        kept = _most_frequent(self.counts, MAX_COUNTS)
        other = self.other + sum(self.counts.values()) - sum(kept.values())
        return ColumnProfile(**shared, counts=kept, other=other)


_PYTHON: dict[str, set[type]] = {
    "float64": {float, int},
    "int64": {float, int},  # JSON writes 1.0 for 1 in places; a fraction is drift, not another type
    "timestamp": {float, int},
    "string": {str},
    "bool": {bool},
}


def _kind_of(present: set[type]) -> str:
    if present <= {float, int}:
        return "int64" if present == {int} else "float64"
    if present == {bool}:
        return "bool"
    return "string" if str in present else "float64" if present & {float, int} else "null"


def _floats(values: Sequence[Any]) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond the range of doubles is not a finite number to us
        return np.array([v if abs(v) <= 1.7e308 else math.inf for v in values], dtype=np.float64)


def arrow_kind(kind: pa.DataType) -> str:
    """Our name for an Arrow type: what decides between sketch, counts and neither."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return arrow_kind(kind.value_type)
    if pt.is_integer(kind):
        return "int64"
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return "float64"
    if pt.is_boolean(kind):
        return "bool"
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return "string"
    if pt.is_timestamp(kind) or pt.is_date(kind):
        return "timestamp"
    return "null" if pt.is_null(kind) else str(kind)


def _arrow_floats(values: Any) -> Floats:
    """Numbers of an Arrow array without nulls as float64; times as seconds since the epoch."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
        if pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("s"))
        scale = per_second[values.type.unit]
        return np.asarray(values.cast(pa.int64()).to_numpy(), dtype=np.float64) / scale
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


_Moments = tuple[int, float, float]
_EMPTY: _Moments = (0, 0.0, 0.0)


def _moments(values: Floats, largest: float) -> _Moments:
    """Count, mean and population standard deviation; scaled where squares would overflow."""
    if largest > 1e150:
        scaled = values / largest
        return int(values.size), float(scaled.mean()) * largest, float(scaled.std()) * largest
    return int(values.size), float(values.mean()), float(values.std())


def _pooled(a: _Moments, b: _Moments) -> _Moments:
    """Moments of both samples together (Chan, Golub, LeVeque 1979), scaled so that nothing overflows."""
    (n, mean_a, std_a), (m, mean_b, std_b) = a, b
    if not n or not m:
        return b if not n else a
    total = n + m
    wa, wb = n / total, m / total
    scale = max(abs(mean_a), abs(mean_b), std_a, std_b)
    if scale == 0:
        return total, 0.0, 0.0
    gap = mean_b / scale - mean_a / scale
    spread = math.sqrt(wa * (std_a / scale) ** 2 + wb * (std_b / scale) ** 2 + wa * wb * gap * gap)
    return total, mean_a * wa + mean_b * wb, min(spread * scale, 1.7976931348623157e308)


def _key(value: str) -> str:
    """A category's name in the profile; a very long one is cut and told apart by its digest."""
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written as JSON
    if len(value) <= _MAX_KEY:
        return value
    return f"{value[:_MAX_KEY]}…{blake3.blake3(value.encode('utf-8', 'replace')).hexdigest()[:12]}"


def _most_frequent(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """The ``limit`` most frequent, ties by name, so that equal data gives the equal profile."""
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:limit])


def _sketch(column: ColumnProfile) -> Any:
    if column.kll is None:
        return None
    try:
        return kll_doubles_sketch.deserialize(base64.b64decode(column.kll, validate=True))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise InvalidInput(f"the sketch of column {column.name!r} is malformed: {error}") from None


def _absent(name: str, rows: int) -> ColumnProfile:
    return ColumnProfile(name=name, type="null", rows=rows, nulls=rows)


def _merged(a: ColumnProfile, b: ColumnProfile) -> ColumnProfile:
    if a.type == "null":
        a, b = b, a
    shared: dict[str, Any] = {
        "name": a.name,
        "type": a.type,
        "rows": a.rows + b.rows,
        "nulls": a.nulls + b.nulls,
    }
    invalid = a.invalid + b.invalid
    if a.type in NUMERIC and b.type in NUMERIC | {"null"}:
        kind = "float64" if {a.type, b.type} == {"float64", "int64"} else a.type
        return _merged_numbers(a, b, shared | {"type": kind, "invalid": invalid})
    if b.type not in {a.type, "null"}:
        # A type flip: what was counted on the other side is of a wrong type here.
        invalid += finite(b)
        return ColumnProfile(
            **shared,
            invalid=invalid,
            kll=a.kll,
            low=a.low,
            high=a.high,
            mean=a.mean,
            std=a.std,
            counts=a.counts,
            other=a.other,
            k=a.k,
        )
    counted = Counter(a.counts)
    counted.update(b.counts)
    kept = _most_frequent(counted, MAX_COUNTS)
    other = a.other + b.other + sum(counted.values()) - sum(kept.values())
    return ColumnProfile(**shared, invalid=invalid, counts=kept, other=other)


def _merged_numbers(a: ColumnProfile, b: ColumnProfile, shared: dict[str, Any]) -> ColumnProfile:
    one, two = _sketch(a), _sketch(b)
    if one is None or two is None:
        some = b if one is None else a
        return ColumnProfile(
            **shared, kll=some.kll, low=some.low, high=some.high, mean=some.mean, std=some.std, k=some.k
        )
    one.merge(two)
    _, mean, std = _pooled((finite(a), a.mean or 0.0, a.std or 0.0), (finite(b), b.mean or 0.0, b.std or 0.0))
    return ColumnProfile(
        **shared,
        kll=base64.b64encode(one.serialize()).decode(),
        low=min(v for v in (a.low, b.low) if v is not None),
        high=max(v for v in (a.high, b.high) if v is not None),
        mean=mean,
        std=std,
        k=int(one.k),
    )
