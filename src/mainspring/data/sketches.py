"""Reading the sketches of a profile: quantiles, histograms, retained items; and moments that can be pooled."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasketches import kll_doubles_sketch

from mainspring.data.readings import numbers_of
from mainspring.errors import InvalidInput
from mainspring.records.profile import ColumnProfile

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

K = 400
"""Size parameter of the sketches we make: rank error 0.7 %, at most 10 kB per column."""
_ERROR = 5.0
"""The stated rank error of a sketch is divided by this for the share of an interval: a sixth was measured, so a fifth is safe."""

NUMERIC = frozenset({"float64", "int64", "timestamp"})
CATEGORICAL = frozenset({"string", "bool"})


def finite(column: ColumnProfile) -> int:
    """How many values the sketch or the counts of this column hold."""
    return column.rows - column.nulls - column.invalid


def quantiles(column: ColumnProfile, ps: Sequence[float]) -> list[float]:
    """Values at the ranks ``ps`` (each 0 to 1); an empty list if the column holds no finite number."""
    bad = [p for p in ps if not 0 <= p <= 1]
    if bad:
        raise InvalidInput("a rank is between 0 and 1", value=bad[0])
    sketch = sketch_of(column)
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
    sketch = sketch_of(column)
    if sketch is None or sketch.is_empty():
        return [0.0] * (len(edges) + 1)
    if not edges:
        return [float(sketch.n)]
    n = sketch.n
    return [max(0.0, float(share) * n) for share in sketch.get_pmf(list(edges))]


def sketch_of(column: ColumnProfile) -> Any:
    """The KLL sketch of a numeric column, or None. Raises :class:`InvalidInput` if it is damaged."""
    return None if column.kll is None else _decode_sketch(column.kll, column.name)


class Weighted(NamedTuple):
    """A column as numbers: distinct ``values`` in ascending order with their ``weights``; ``unread`` values are no numbers.

    ``worth``: the share of the rows that, counted exactly, would give as much information. It is 1 while all values are kept. For
    a sketch it falls with the number of rows, because the error of a sketch in the share of an interval does not fall with it.
    """

    values: Floats
    weights: Floats
    unread: float
    worth: float


def weighted(column: ColumnProfile, *, times: bool = False) -> Weighted | None:
    """The column as numbers: numbers unchanged, truth values as 0 and 1, text where it reads as a number (``times``: as a date).

    None if nothing of it is a number.
    """
    sketch = sketch_of(column) if column.type in NUMERIC else None
    if column.type == "string" and column.numbers is not None and not times:
        sketch = number_sketch_of(column)
    if sketch is not None:
        return None if sketch.is_empty() else Weighted(*sketch_items(sketch), 0.0, _information_share(sketch))
    counted, unread = dict[float, int](), 0
    if column.type == "bool":
        counted = {0.0: column.counts.get("false", 0), 1.0: column.counts.get("true", 0)}
    elif column.type == "string":
        counted, unread = numbers_of(column.counts, times=times)
    counted = {v: n for v, n in counted.items() if n}
    if not counted:
        return None
    values = np.array(sorted(counted), dtype=np.float64)
    weights = np.array([counted[v] for v in sorted(counted)], dtype=np.float64)
    return Weighted(values, weights, float(unread + column.other), 1.0)


def _information_share(sketch: Any) -> float:
    if not sketch.is_estimation_mode():
        return 1.0
    # Measured (bench/drift_false_alarms.py): the share of an interval errs by a sixth of the bound that the sketch states
    # with 99 % confidence, independent of n. This adds error^2 to the sampling variance p (1 - p) / n of the share p, taken
    # at p = 0.1, where p (1 - p) = 0.09.
    error = float(sketch.normalized_rank_error(True)) / _ERROR
    return 1.0 / (1.0 + float(sketch.n) * error * error / 0.09)


def number_sketch_of(column: ColumnProfile) -> Any:
    """A sketch of a text column as numbers, if every value of it reads as one; else None."""
    if column.other:
        return None if column.numbers is None else _decode_sketch(column.numbers, column.name)
    numbers, unread = numbers_of(column.counts)
    if unread or column.type != "string":
        return None
    sketch = kll_doubles_sketch(K)
    if numbers:
        sketch.update(repeat_values(numbers))
    return sketch


def encode_sketch(sketch: Any) -> str:
    """A sketch as a profile stores it: base64 of its bytes."""
    return base64.b64encode(sketch.serialize()).decode()


def sketch_items(sketch: Any) -> tuple[Floats, Floats]:
    """The distinct values that a sketch retains, in order, and the weight of each; all values while there are at most ``k``."""
    # The iterator of the binding gives wrong weights after a merge (all 1). Its ranks are right, so weights are computed from them.
    values = np.unique(np.fromiter((v for v, _ in sketch), dtype=np.float64))
    shares = np.asarray(sketch.get_pmf(values[1:].tolist())) if len(values) > 1 else np.ones(len(values))
    return values, np.asarray(np.round(shares * sketch.n), dtype=np.float64)


def repeat_values(counted: Mapping[float, int]) -> Floats:
    """An array with each value repeated as often as it was counted."""
    return np.repeat(
        np.fromiter(counted.keys(), dtype=np.float64, count=len(counted)),
        np.fromiter(counted.values(), dtype=np.int64, count=len(counted)),
    )


def _decode_sketch(text: str, name: str) -> Any:
    try:
        return kll_doubles_sketch.deserialize(base64.b64decode(text, validate=True))
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        raise InvalidInput(f"the sketch of column {name!r} is malformed: {error}") from None


Moments = tuple[int, float, float]
EMPTY: Moments = (0, 0.0, 0.0)


def moments_of(values: Floats, largest: float) -> Moments:
    """Count, mean and population standard deviation; scaled where squares would overflow."""
    if largest > 1e150:
        scaled = values / largest
        return int(values.size), float(scaled.mean()) * largest, float(scaled.std()) * largest
    return int(values.size), float(values.mean()), float(values.std())


def pool_moments(a: Moments, b: Moments) -> Moments:
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
