"""Checks the columns of a request or a table; every format reads values and nulls in this one way.

A null number is NaN. A null text stays a null: what an estimator gets for it is what it was trained on (see
:mod:`mainspring.models.formats.estimators`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mainspring.clock import to_us
from mainspring.errors import InvalidInput, near
from mainspring.models.formats.predictor import Columns
from mainspring.records.instants import FIRST, LAST, parse_instant
from mainspring.records.models import Column, Signature

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.object_]


def numeric_names(signature: Signature) -> list[str]:
    """Names of the input columns that are numbers or truth values, in the order of the signature."""
    return [column.name for column in signature.inputs if column.type != "string"]


def text_names(signature: Signature) -> list[str]:
    """Names of the input columns that are strings, in the order of the signature."""
    return [column.name for column in signature.inputs if column.type == "string"]


def pick(columns: Columns, inputs: Sequence[Column]) -> tuple[int, list[Any]]:
    """``(number of rows, values of each input column)``; the values of a missing nullable column are None, which is all null.

    Raises InvalidInput for a missing column that is not nullable, and for columns of different lengths.
    """
    rows = -1
    values: list[Any] = []
    for column in inputs:
        cells = columns.get(column.name)
        if cells is None:
            if not column.nullable:
                raise InvalidInput(
                    "a column of the signature is missing",
                    value=column.name,
                    next_step=near(column.name, columns, what="column"),
                )
            values.append(None)
            continue
        cells = plain(cells)
        length = len(cells)
        if rows not in (-1, length):
            raise InvalidInput(
                "columns have different lengths",
                value=column.name,
                place=f"{length} rows, others have {rows}",
            )
        rows = length
        values.append(cells)
    if rows < 0:
        raise InvalidInput("no column was given", next_step="Send at least one column of the signature.")
    return rows, values


def plain(values: Any) -> Any:
    """Arrow's texts and dictionaries as Python values: NumPy would turn a null of a dictionary into the dictionary's last value."""
    kind = str(getattr(values, "type", ""))
    if kind.startswith(("dictionary", "string", "large_string")) and hasattr(values, "to_pylist"):
        return values.to_pylist()
    return values


def floats(name: str, values: Any, rows: int) -> Floats:
    """A numeric column as float64 ``(rows,)``; null is NaN. Raises InvalidInput for text, even text that looks like a number."""
    if values is None:
        return np.full(rows, np.nan)
    try:
        array = np.asarray(values)
        if array.ndim != 1:
            raise InvalidInput("one number per row is expected", value=values[0], place=f"column {name!r}")
        if array.dtype.kind not in "fiub":
            if array.dtype.kind != "O" or any(isinstance(v, str | bytes) for v in array):
                raise InvalidInput(
                    "a number is expected", value=_first_non_number(values), place=f"column {name!r}"
                )
            array = np.array([np.nan if v is None else v for v in array.tolist()], dtype=np.float64)
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            "a number is expected", value=_first_non_number(values), place=f"column {name!r}"
        ) from None


def numbers(column: Column, values: Any, rows: int) -> Floats:
    """A column that is no text as float64 ``(rows,)``; null is NaN, and a time is microseconds since 1970."""
    read = instants if column.type == "datetime" else floats
    return read(column.name, values, rows)


def instants(name: str, values: Any, rows: int) -> Floats:
    """A column of dates or times as microseconds since 1970, float64 ``(rows,)``; null is NaN. Raises InvalidInput for anything else.

    Times without a zone are of UTC.
    """
    if values is None:
        return np.full(rows, np.nan)
    zone = getattr(getattr(values, "dtype", None), "tz", None)
    if zone is not None:  # pandas with a zone: NumPy would make objects of it
        values = getattr(values, "dt", values).tz_convert("UTC")
        values = getattr(values, "dt", values).tz_localize(None)
    if hasattr(values, "to_pylist"):
        values = _read_arrow(values)
    array = np.asarray(values)
    if array.dtype.kind == "M":
        return _read_times(name, array)
    out = np.empty(rows)
    for i, value in enumerate(array.tolist() if array.dtype.kind != "O" else array):
        out[i] = (
            np.nan
            if is_null(value) or type(value).__name__ == "NaTType"
            else to_us(parse_instant(value, place=f"column {name!r}"))
        )
    return out


def _read_times(name: str, times: Any) -> Floats:
    """NumPy's dates and times; those outside of the years of records.instants are refused, as in texts: their unit would wrap around."""
    null = np.isnat(times)
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    far = np.flatnonzero(~null & ((years < FIRST) | (years > LAST)))
    if len(far):
        raise InvalidInput(
            f"a time is outside of the years {FIRST} to {LAST}",
            value=str(times[far[0]]),
            place=f"column {name!r}",
        )
    out: Floats = times.astype("datetime64[us]").astype(np.int64).astype(np.float64)
    out[null] = np.nan
    return out


def _read_arrow(values: Any) -> Any:
    """Arrow's dates and times as NumPy's (Arrow keeps the instant of a time with a zone); anything else as Python values."""
    import pyarrow as pa

    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
    return values.to_pylist()


def strings(name: str, values: Any, rows: int, *, null: Any = "") -> Strings:
    """A string column as objects ``(rows,)``; None and NaN become ``null``. Raises InvalidInput for any other value."""
    out = np.empty(rows, dtype=object)
    if values is None:
        out[:] = null
        return out
    # An object array keeps each value as it is; tolist() gives Python's own types in one pass.
    listed = values.tolist() if hasattr(values, "tolist") else values
    for i, value in enumerate(listed):
        out[i] = value if type(value) is str else text(name, value, null=null)
    return out


def text(name: str, value: Any, *, null: Any = "") -> Any:
    """One value of a string column; None and NaN become ``null``."""
    if is_null(value):
        return null
    if isinstance(value, str):
        return str(value)
    raise InvalidInput("a string is expected", value=value, place=f"column {name!r}")


def is_null(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124 - only NaN differs from itself


def frame(columns: Columns, signature: Signature) -> Any:
    """The rows as an Arrow table with the signature's columns, in its order: text nulls stay null, numbers are float64, times timestamps."""
    import pyarrow as pa

    return pa.table(clean(columns, signature))


def clean(columns: Columns, signature: Signature) -> dict[str, Any]:
    """The signature's columns, in its order, as arrays: a null text is None, a null number NaN, numbers are float64, times datetime64."""
    rows, values = pick(columns, signature.inputs)
    return {
        c.name: strings(c.name, v, rows, null=None) if c.type == "string" else _clean_numbers(c, v, rows)
        for c, v in zip(signature.inputs, values, strict=True)
    }


def _clean_numbers(column: Column, values: Any, rows: int) -> Any:
    read = numbers(column, values, rows)
    return as_times(read) if column.type == "datetime" else read


def as_times(us: Floats) -> Any:
    """Microseconds since 1970 as datetime64[us]; NaN is NaT."""
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isnan(us), 0, us).astype(np.int64).astype("datetime64[us]")
    whole[np.isnan(us)] = np.datetime64("NaT")
    return whole


class Known:
    """Refuses values that the estimator itself would refuse (an encoder with ``handle_unknown="error"``); false if it takes all."""

    def __init__(self, known: Mapping[str, Sequence[str | float]]) -> None:
        self._sets = {name: frozenset(values) for name, values in known.items()}

    def __bool__(self) -> bool:
        return bool(self._sets)

    def check(self, columns: Columns) -> None:
        """Raise InvalidInput for an unknown value. Nulls pass: the signature says whether a column takes them."""
        for name, known in self._sets.items():
            values = columns.get(name)
            if values is None:
                continue
            for value in _listed(values):
                if value not in known and not is_null(value):
                    raise InvalidInput(
                        "the model knows no such value of this column",
                        value=value,
                        place=f"column {name!r}",
                        next_step=near(str(value), [str(k) for k in known], what="value"),
                    )


def _listed(values: Any) -> Any:
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            return getattr(values, method)()
    return values


def _first_non_number(values: Any) -> object:
    """The first value that is no number, for the message; a text that reads as one only if there is no other; all values if there is none."""
    found = [v for v in values if not isinstance(v, int | float | np.number | np.bool_ | type(None))]
    for value in found:
        try:
            float(value)
        except (TypeError, ValueError):
            return value
    return f"the text {str(found[0])!r}" if found else values
