"""Rows on which a stored payload must repeat its estimator: real ones, and ones made from the signature.

A server accepts more than a sample contains: nulls, unseen categories, zeros and extremes, values beside a tree's threshold. So rows
with each of these are made here from real rows, one column at a time and several together. Where the estimator raises on a row, the
payload must not answer a number either. Everything is drawn from one seed, so that two saves compare the same rows.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mainspring.clock import from_us, to_us
from mainspring.errors import InvalidInput
from mainspring.models.formats.columns import instants, is_null, pick
from mainspring.models.formats.estimators import NullText, estimator_scores, learned_categories
from mainspring.models.formats.parity_splits import split_values
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.records.instants import parse_instant
from mainspring.records.models import Column, Signature

MAX_REAL, MIXED, AROUND_SPLITS = 20_000, 400, 1_500
"""Most rows taken from the sample and from the training rows; rows that mix columns of several rows; rows beside tree thresholds."""
SINGLE, REAL_VALUES, EXTREMES = 6_000, 4_000_000, 40
"""Most rows with one column changed, most values in real rows, most columns with extremes: bounds for signatures of thousands of columns."""
SEED = 20_110_412
NULL, UNSEEN, REAL = "null", "unseen value", "real row"


@dataclass
class ParityRows:
    """Columns of ``len(kinds)`` rows; ``kinds`` says what each row tests. Real rows come first."""

    columns: dict[str, list[Any]]
    kinds: list[tuple[str, str]] = field(default_factory=list)
    """(kind, column) of each row."""

    @property
    def real(self) -> int:
        """How many rows are real."""
        return sum(1 for kind, _ in self.kinds if kind == REAL)

    def take(self, rows: Any) -> dict[str, list[Any]]:
        """The columns of these rows, by position."""
        return {name: [values[i] for i in rows] for name, values in self.columns.items()}


def as_columns(rows: Any) -> Mapping[str, Any]:
    """A mapping of columns as it is; a table (Arrow, pandas, Polars) as a mapping of lists."""
    if isinstance(rows, Mapping):
        return rows
    import narwhals as nw

    table = nw.from_native(rows, eager_only=True).to_arrow()
    return dict(zip(table.column_names, (column.to_pylist() for column in table.columns), strict=True))


def make_rows(
    estimator: Any, signature: Signature, sample: Any, training: Any, null_text: NullText
) -> ParityRows:
    """The rows to compare on: the sample, the training rows if there are any, then the rows that are made here."""
    rng = np.random.default_rng(SEED)
    real = _real_columns(signature, as_columns(sample), rng)
    if training is not None:
        more = _real_columns(signature, as_columns(training), rng)
        real = {name: values + more[name] for name, values in real.items()}
    count = len(next(iter(real.values())))
    rows = ParityRows(real, [(REAL, "")] * count)
    if not count or getattr(estimator, "real_rows_only", False):
        return rows
    base = {name: values[:] for name, values in real.items()}
    add = _RowAdder(rows, base, count)
    for kind, column, changes in _make_changes(signature, base, rng):
        add(kind, column, changes)
    for changes in split_values(estimator, signature, base, null_text, rng, limit=AROUND_SPLITS):
        add("value beside a tree threshold", next(iter(changes)), changes)
    for kind, column, changes in _extremes(signature, rng):
        add(kind, column, changes)
    return rows


class _RowAdder:
    """Appends copies of real rows with some values changed, each from another real row than the last."""

    def __init__(self, rows: ParityRows, base: dict[str, list[Any]], count: int) -> None:
        self._rows, self._base, self._count, self._turn = rows, base, count, 0

    def __call__(self, kind: str, column: str, changes: Mapping[str, Any]) -> None:
        # Steps of 7, so that changes of one column are spread over the sample instead of over neighbouring rows.
        self._turn = (self._turn + 7) % self._count
        for name, values in self._rows.columns.items():
            values.append(changes[name] if name in changes else self._base[name][self._turn])
        self._rows.kinds.append((kind, column))


def _real_columns(signature: Signature, columns: Columns, rng: Any) -> dict[str, list[Any]]:
    rows, values = pick(columns, signature.inputs)
    listed = {c.name: _as_list(c, v, rows) for c, v in zip(signature.inputs, values, strict=True)}
    most = min(MAX_REAL, max(200, REAL_VALUES // len(values)))
    if rows <= most:
        return listed
    chosen = np.sort(rng.choice(rows, most, replace=False))
    return {name: [column[i] for i in chosen] for name, column in listed.items()}


def _as_list(column: Column, values: Any, rows: int) -> list[Any]:
    if values is None:
        return [None] * rows
    if column.type == "datetime":
        return [None if math.isnan(us) else from_us(int(us)) for us in instants(column.name, values, rows)]
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
            break
    return [None if _is_missing(v) else v for v in values]


def _is_missing(value: Any) -> bool:
    return is_null(value) or type(value).__name__ in ("NAType", "NaTType")


_Change = tuple[str, str, dict[str, Any]]


def _make_changes(signature: Signature, base: dict[str, list[Any]], rng: Any) -> Iterator[_Change]:
    nullable = [c.name for c in signature.inputs if c.nullable]
    for name in nullable:
        for _ in range(3):
            yield NULL, name, {name: None}
    for _ in range(3 if len(nullable) > 1 else 0):
        yield NULL, ", ".join(nullable), dict.fromkeys(nullable)
    pools = {c.name: [v for v in base[c.name] if not is_null(v)] for c in signature.inputs}
    for column in signature.inputs:
        pool = pools[column.name]
        values = list(_test_values(column, pool))
        few = max(3, SINGLE // len(signature.inputs))
        if len(values) > few:  # the unseen value, which comes first, and some of the others
            values = values[:1] + [
                values[int(i)] for i in sorted(rng.choice(range(1, len(values)), few - 1, replace=False))
            ]
        for kind, value in values:
            yield kind, column.name, {column.name: value}
    for _ in range(MIXED):
        mixed = {name: _draw(base[name], rng) for name in base}
        for name in nullable:
            if rng.random() < 0.1:
                mixed[name] = None
        yield "mixed row", "", mixed


def _draw(values: list[Any], rng: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _test_values(column: Column, pool: list[Any]) -> Iterator[tuple[str, Any]]:
    if column.type == "string":
        yield UNSEEN, _unseen_text(pool)
        counts: dict[str, int] = {}
        for value in pool:
            counts[value] = counts.get(value, 0) + 1
        for value in sorted(counts, key=lambda v: counts[v])[:20]:
            yield "rare category", value
        for value in ("", " ", "0", "x" * 4096, "gr\u00f6\u00dfe \u2603", "a b. c"):
            yield "odd text", value
        return
    if column.type == "bool":
        yield from ((UNSEEN if v not in pool else "truth value", v) for v in (False, True))
        return
    if column.type == "datetime":
        yield from _test_times(pool)
        return
    numbers = [float(v) for v in pool] or [0.0]
    low, high = min(numbers), max(numbers)
    if column.type == "int64":
        yield UNSEEN, int(min(high, 2.0**62)) + 1
        yield "number", max(int(low), -(2**62)) - 1
        for whole in (0, 1, -1, 2**24 + 1, -(2**24) - 1, 2**31, 2**53 + 1, -(2**53) - 1):
            yield "number", whole
        return
    yield UNSEEN, high + (high - low or 1.0) * 0.37
    for number in (0.0, -0.0, 1.0, -1.0, 0.1, low - 0.5, -high, low * 3, high * 3, 1e-300, 1e9 + 0.5, -1e9):
        if math.isfinite(number):
            yield "number", number


def _test_times(pool: list[Any]) -> Iterator[tuple[str, Any]]:
    """A time beyond those seen; ends of days, months, leap years and centuries; times before 1970."""
    us = [to_us(v) for v in pool] or [0]
    yield UNSEEN, from_us(max(us) + (max(us) - min(us)) // 3 + 12_345_678)
    for moment in (
        "1970-01-01", "1969-12-31T23:59:59.999999", "2000-02-29", "2024-02-29T23:59:59.999999", "2100-02-28T23:59:59.999999",
        "2100-03-01", "1999-12-31T23:59:59.999999", "2199-12-31T12:00:00", "1700-03-01",
    ):  # fmt: skip
        yield "time", parse_instant(moment)


def _unseen_text(pool: list[Any]) -> str:
    text = "never seen"
    while text in pool:
        text += "."
    return text


def _extremes(signature: Signature, rng: Any) -> Iterator[_Change]:
    """These rows come last: estimators raise on some, and :func:`collect_answers` finds neighbouring errors fastest."""
    single = float(np.finfo(np.float32).max)
    columns = signature.inputs
    if len(columns) > EXTREMES:
        columns = [columns[int(i)] for i in sorted(rng.choice(len(columns), EXTREMES, replace=False))]
    for column in columns:
        extremes: tuple[Any, ...] = ()
        if column.type == "int64":
            extremes = (2**63 - 1, -(2**63))
        elif column.type == "float64":
            extremes = (single, -single, 1e300, -1e300, sys.float_info.max, -sys.float_info.max)
        for value in extremes:
            yield "extreme number", column.name, {column.name: value}


# --- answers


@dataclass
class Answers:
    """Scores of rows; a row on which the model raises (``errors``: row to message) has NaN."""

    scores: Scores
    errors: dict[int, str]

    @property
    def finite(self) -> Any:
        """Bool of each row: whether all its scores are finite."""
        finite = np.isfinite(self.scores)
        return finite if finite.ndim == 1 else finite.all(axis=1)


def collect_answers(score: Callable[[Columns], Scores], rows: ParityRows) -> Answers:
    """What ``score`` answers to each row. If it raises on a batch, the halves are tried, down to the rows that make it raise."""
    errors: dict[int, str] = {}
    by_row: dict[int, Any] = {}

    def score_range(first: int, last: int) -> None:
        try:
            scores = score(rows.take(range(first, last)))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises on a row is its answer to that row
            if last - first == 1:
                errors[first] = f"{type(error).__name__}: {str(error)[:200]}"
                return
            middle = (first + last) // 2
            score_range(first, middle)
            score_range(middle, last)
        else:
            by_row.update(zip(range(first, last), scores, strict=True))

    with warnings.catch_warnings():  # about unknown categories and overflow, which the answers show
        warnings.simplefilter("ignore")
        score_range(0, len(rows.kinds))
    width = next((np.shape(value) for value in by_row.values()), ())
    scores = np.full((len(rows.kinds), *width), np.nan)
    for row, value in by_row.items():
        scores[row] = value
    return Answers(scores, errors)


def known_values(
    estimator: Any, signature: Signature, rows: ParityRows, reference: Answers, null_text: NullText
) -> dict[str, list[str | float]]:
    """Columns on whose unseen values the estimator raises, with the values that it takes: those of its encoders on which it runs."""
    closed = {rows.kinds[row][1] for row in reference.errors if rows.kinds[row][0] == UNSEEN}
    learned = learned_categories(estimator)
    out: dict[str, list[str | float]] = {}
    for column in signature.inputs:
        if column.name not in closed:
            continue
        accepted: dict[Any, None] = {}
        for values in learned:
            if all(isinstance(v, str) == (column.type == "string") for v in values) and values:
                trial = rows.take([0] * len(values)) | {column.name: values}
                if _runs(estimator, trial, signature, null_text):
                    accepted |= dict.fromkeys(values)
        seen = {v for v in rows.columns[column.name][: rows.real] if not is_null(v)}
        if accepted and seen <= accepted.keys():  # else it raises for another reason
            out[column.name] = [v if isinstance(v, str) else float(v) for v in accepted]
    return out


def _runs(estimator: Any, columns: Columns, signature: Signature, null_text: NullText) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator_scores(estimator, columns, signature, null_text)
    except Exception:  # noqa: BLE001 - only whether it raises matters here
        return False
    return True


def refuse_null_errors(rows: ParityRows, reference: Answers) -> None:
    """Raise InvalidInput if the estimator raises on a null that the signature allows."""
    for row, error in sorted(reference.errors.items()):
        kind, column = rows.kinds[row]
        if kind == NULL:
            raise InvalidInput(
                f"the signature admits null, but the estimator raises an error on it: {error}",
                value=column,
                place="signature",
                next_step="Declare the column with nullable=False, or put an imputer in front of the estimator and fit again.",
            )
