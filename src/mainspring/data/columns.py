"""One column of a profile while it is being built. Values of any type are converted to the type of the column."""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np
from datasketches import kll_doubles_sketch

from mainspring.data.categories import MAX_COUNTS, MAX_WORKING, Tally, most_frequent
from mainspring.data.readings import number_of, numbers_of, seconds_of, text_of, truth_of
from mainspring.data.sketches import (
    CATEGORICAL,
    EMPTY,
    NUMERIC,
    K,
    encode_sketch,
    finite,
    moments_of,
    number_sketch_of,
    pool_moments,
    repeat_values,
    sketch_items,
    sketch_of,
)
from mainspring.records.profile import ColumnProfile

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    Floats = npt.NDArray[np.float64]

_MAX_KEY = 128
_NONE = type(None)


class Column:
    """The counts, moments and sketches of one column while it is being built."""

    def __init__(self, name: str, kind: str, k: int) -> None:
        self.name, self.kind, self.k = name, kind, k
        self.rows = self.nulls = self.invalid = self.other = 0
        self.moments = EMPTY
        self.low, self.high = math.inf, -math.inf
        self.sketch: Any = None
        self.tally = Tally()
        self.numbers: Any = None
        """Once the tally dropped categories: a sketch of the text as numbers, as long as every value reads as a number."""

    @classmethod
    def of(cls, profile: ColumnProfile) -> Column:
        """A column that continues from a profile."""
        out = cls(profile.name, profile.type, profile.k or K)
        out.rows, out.nulls, out.invalid = profile.rows, profile.nulls, profile.invalid
        if profile.type in CATEGORICAL:
            out.tally = Tally.of(profile)
            out.numbers = number_sketch_of(profile) if profile.other else None
        else:
            out.sketch, out.other = sketch_of(profile), profile.other
        if out.sketch is not None:
            out.moments = profile_moments(profile)
            out.low, out.high = profile.low or 0.0, profile.high or 0.0
        return out

    def add_profile(self, more: ColumnProfile) -> Column:
        """Add the values of a profile of another type, as far as that profile keeps them."""
        self.rows += more.rows
        self.nulls += more.nulls
        self.invalid += more.invalid
        if more.type in NUMERIC:
            self._add_numeric(more.type, _sketch_values(sketch_of(more)))
        elif more.type == "bool":
            self._add_truths(more.counts.get("true", 0), more.counts.get("false", 0))
        elif more.type != "string":
            self.invalid += finite(more)
        elif more.other and self.kind in NUMERIC and (numbers := number_sketch_of(more)) is not None:
            self._add_numeric("float64", _sketch_values(numbers))
        else:
            self._add_text(more.counts)
            self.invalid += more.other
        return self

    def pad_rows(self, rows: int) -> None:
        """Count missing values as nulls until the column has this many rows."""
        self.nulls += rows - self.rows
        self.rows = rows

    def add(self, values: Any) -> None:
        """Plain values: a list, a tuple or a numpy array."""
        self.rows += len(values)
        if isinstance(values, np.ndarray) and values.dtype.kind in "fiubM":
            if values.dtype.kind == "b":
                yes = int(values.sum())
                self._add_truths(yes, len(values) - yes)
            elif values.dtype.kind == "M":
                known = ~np.isnat(values)
                self.nulls += int(len(values) - known.sum())
                self._add_numeric(
                    "timestamp", values[known].astype("datetime64[us]").astype(np.float64) / 1e6
                )
            else:
                kind = "float64" if values.dtype.kind == "f" else "int64"
                self._add_numeric(kind, values.astype(np.float64, copy=False))
            return
        self._add_objects(values.tolist() if isinstance(values, np.ndarray) else values)

    def _add_objects(self, values: Sequence[Any]) -> None:
        present = set(map(type, values))
        if not present <= _PLAIN:
            values = [_plain_value(v) for v in values]
            present = set(map(type, values))
        if _NONE in present:
            present.discard(_NONE)
            size = len(values)
            values = [v for v in values if v is not None]
            self.nulls += size - len(values)
        if not present:
            return
        for kind, types in _PYTHON.items():
            matching = present & types
            if not matching:
                continue
            chosen = values if matching == present else [v for v in values if type(v) in types]
            if kind == "timestamp":
                self._add_numeric(kind, np.array([v.seconds for v in chosen], dtype=np.float64))
            elif kind == "float64":
                self._add_numeric("int64" if matching == {int} else "float64", _to_floats(chosen))
            elif kind == "bool":
                self._add_truths(yes := sum(chosen), len(chosen) - yes)
            else:
                self._add_text(Counter(chosen))
        self.invalid += sum(1 for v in values if type(v) not in _KNOWN) if not present <= _KNOWN else 0

    def add_arrow(self, values: Any) -> None:
        """An Arrow array or chunked array."""
        import pyarrow as pa

        self.rows += len(values)
        self.nulls += values.null_count
        valid = values.drop_null() if values.null_count else values
        if not len(valid):
            return
        kind = arrow_kind(values.type)
        if kind in NUMERIC:
            self._add_numeric(kind, _arrow_floats(valid))
        elif kind in CATEGORICAL:
            if pa.types.is_dictionary(valid.type):
                valid = valid.cast(valid.type.value_type)
            counted = valid.value_counts()
            by_value = dict(
                zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
            )
            if kind == "bool":
                self._add_truths(by_value.get(True, 0), by_value.get(False, 0))
            else:
                self._add_text(by_value)
        else:
            self._settle_type(kind)
            if self.kind in NUMERIC | CATEGORICAL:
                self.invalid += len(valid)
            else:
                self.other += len(valid)

    # --- values of one type, converted to the column's ------------------------------------------------------------------

    def _settle_type(self, kind: str) -> None:
        if self.kind == "null":
            self.kind = kind
        elif self.kind == "int64" and kind == "float64" and self.sketch is not None:
            self.kind = "float64"

    def _add_numeric(self, kind: str, values: Floats) -> None:
        if not len(values):
            return
        self._settle_type(kind)
        if self.kind in NUMERIC:
            self._add_numbers(values)
            return
        good = np.isfinite(values)
        self.invalid += int(good.size - good.sum())
        unique, counts = np.unique(values[good], return_counts=True)
        counted = dict(zip(unique.tolist(), counts.tolist(), strict=True))
        if self.kind == "bool":
            self._add_categories({"true": counted.pop(1.0, 0), "false": counted.pop(0.0, 0)})
            self.invalid += sum(counted.values())
        elif self.kind == "string" and self._reads_as_numbers():
            self._add_categories({text_of(v): n for v, n in counted.items()})
        else:
            self.invalid += sum(counted.values())

    def _add_truths(self, yes: int, no: int) -> None:
        if not yes + no:
            return
        self._settle_type("bool")
        if self.kind == "bool":
            self._add_categories({"true": yes, "false": no})
        elif self.kind in NUMERIC:
            self._add_numbers(np.repeat([1.0, 0.0], [yes, no]))
        elif self.kind == "string" and all(truth_of(k) is not None for k in self.tally.counts):
            self._add_categories({"true": yes, "false": no})
        else:
            self.invalid += yes + no

    def _add_text(self, counted: Mapping[str, int]) -> None:
        if not counted:
            return
        self._settle_type("string")
        if self.kind == "string":
            self._add_categories(_by_key(counted))
        elif self.kind == "bool":
            for key, count in counted.items():
                truth = truth_of(key)
                if truth is None:
                    self.invalid += count
                else:
                    self._add_categories({"true" if truth else "false": count})
        elif self.kind in NUMERIC:
            numbers, unread = numbers_of(counted, times=self.kind == "timestamp")
            self.invalid += unread
            self._add_numbers(repeat_values(numbers))
        else:
            self.invalid += sum(counted.values())

    def _reads_as_numbers(self) -> bool:
        if self.tally.other:
            return self.numbers is not None
        return all(number_of(k) is not None for k in self.tally.counts)

    def _add_numbers(self, values: Floats) -> None:
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
        )  # the binding rejects Arrow's read-only buffers
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.moments = pool_moments(self.moments, moments_of(values, max(abs(low), abs(high))))

    def _add_categories(self, counted: Mapping[str, int]) -> None:
        tally = self.tally
        if tally.other and self.numbers is not None:
            self._update_number_sketch(counted)
        tally.add(counted)
        self._prune_tally(MAX_WORKING, MAX_WORKING // 4)

    def _prune_tally(self, limit: int, keep: int) -> None:
        tally = self.tally
        if len(tally.counts) > limit:
            if not tally.other:
                self.numbers = kll_doubles_sketch(self.k)
                self._update_number_sketch(tally.counts)
            tally.prune(limit, keep)

    def _update_number_sketch(self, counted: Mapping[str, int]) -> None:
        numbers, unread = numbers_of(counted) if self.kind == "string" else ({}, 1)
        if unread:
            self.numbers = None
        elif numbers:
            self.numbers.update(repeat_values(numbers))

    def build(self) -> ColumnProfile:
        """The profile of all values so far; more can be added afterwards."""
        shared: dict[str, Any] = {
            "name": self.name,
            "type": self.kind,
            "rows": self.rows,
            "nulls": self.nulls,
            "invalid": self.invalid,
        }
        n, mean, std = self.moments
        if self.sketch is not None and n:
            return ColumnProfile(
                **shared,
                kll=encode_sketch(self.sketch),
                low=self.low,
                high=self.high,
                mean=mean,
                std=std,
                k=int(self.sketch.k),
            )
        if self.other:
            return ColumnProfile(**shared, other=self.other)
        before = self.tally, self.numbers
        self.tally = copy.deepcopy(self.tally)  # more may be added later
        self._prune_tally(MAX_COUNTS, MAX_COUNTS)
        built = categorical_profile(shared, self.tally, self.numbers)
        self.tally, self.numbers = before
        return built


class _Moment:
    """A date or a time among plain values, as seconds since the epoch."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


# The first type of this table that a batch holds becomes the type of a new column: text before numbers, since numbers can be
# written as text.
_PYTHON: dict[str, set[type]] = {
    "string": {str},
    "float64": {
        float,
        int,
    },  # JSON may write 1 for 1.0, and the reverse; a fraction is drift, not another type
    "bool": {bool},
    "timestamp": {_Moment},
}
_KNOWN = set().union(*_PYTHON.values())
_PLAIN = {str, float, int, bool, _NONE}


def _plain_value(value: Any) -> Any:
    """A value of one of the plain types, if it is a number, a text or a time of another library."""
    if isinstance(value, np.generic):
        if isinstance(value, np.datetime64):
            return (
                None
                if np.isnat(value)
                else _Moment(float(value.astype("datetime64[us]").astype(np.int64)) / 1e6)
            )
        value = value.item()
    if isinstance(value, decimal.Decimal):
        return float(value) if not value.is_snan() else math.nan
    if isinstance(value, dt.date):  # a datetime is one, and so is a pandas Timestamp
        try:
            return _Moment(seconds_of(value))
        except (ValueError, TypeError, OverflowError):  # pandas' NaT
            return None
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    if isinstance(value, int) and type(value) not in {int, bool}:
        return int(value)
    return value


def _by_key(counted: Mapping[str, int]) -> dict[str, int]:
    out: dict[str, int] = {}
    for value, count in counted.items():
        key = _category_key(value)
        out[key] = out.get(key, 0) + count
    return out


def _sketch_values(sketch: Any) -> Floats:
    if sketch is None:
        return np.zeros(0)
    values, weights = sketch_items(sketch)
    return np.repeat(values, weights.astype(np.int64))


def categorical_profile(shared: dict[str, Any], tally: Tally, numbers: Any) -> ColumnProfile:
    """The profile of a categorical column. ``rest``, ``sample`` and ``numbers`` are kept only if categories were dropped."""
    if not tally.other or tally.rest is None:
        return ColumnProfile(**shared, counts=most_frequent(tally.counts, MAX_COUNTS), other=tally.other)
    return ColumnProfile(
        **shared,
        counts=most_frequent(tally.counts, MAX_COUNTS),
        other=tally.other,
        rest=tally.rest.tolist(),
        sample={str(h): n for h, n in sorted(tally.sampled().items())},
        below=tally.below,
        numbers=None if numbers is None else encode_sketch(numbers),
    )


def _to_floats(values: Sequence[Any]) -> Floats:
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond the range of doubles is counted as not finite
        return np.array([v if abs(v) <= 1.7e308 else math.inf for v in values], dtype=np.float64)


def arrow_kind(kind: pa.DataType) -> str:
    """The profile type of an Arrow type: it decides between a sketch, counts and neither."""
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


def _category_key(value: str) -> str:
    """A category's name in the profile; a very long one is cut, and its digest keeps it distinct."""
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written as JSON
    if len(value) <= _MAX_KEY:
        return value
    return f"{value[:_MAX_KEY]}…{blake3.blake3(value.encode('utf-8', 'replace')).hexdigest()[:12]}"


def profile_moments(column: ColumnProfile) -> tuple[int, float, float]:
    """Count, mean and population standard deviation of the finite values of a profile."""
    return finite(column), column.mean or 0.0, column.std or 0.0
