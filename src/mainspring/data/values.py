"""Values as the engine compares them: values that differ stay different, and representations of one value become equal.

The engine (DuckDB) has no ``decimal256``, and truncates nanoseconds of times with a zone and of times of day. So it gets times as
whole numbers of their unit, and decimals that it does not have as text. Columns of two types are converted to one first:

- numbers of any type, and truth values as 0 and 1: by their value. A float with a fraction has the value that it prints, so that
  the decimal 1.10 and the float 1.1 are equal; whole floats are exact; -0.0 equals 0.0, and NaN equals NaN.
- dates and times: as nanoseconds since the epoch; a date is its midnight, a time without a zone is in UTC.
- times of day, and durations: in nanoseconds. Text and bytes: by the bytes in UTF-8.
- a column that holds only nulls: in the type of the other one. Text and any other type: by the printed text.

Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.data.columns import arrow_kind

Column = Any  # a pyarrow.ChunkedArray
_TO_NANO = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY = 86_400 * 10**9
_SPELLS = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def engine_column(column: Column) -> Column:
    """A column in a type that the engine reads without changing a value; equal values stay equal, different ones different."""
    kind = column.type
    if pt.is_timestamp(kind) or pt.is_time64(kind) or pt.is_duration(kind):
        return column.cast(pa.int64())
    if pt.is_time32(kind):
        return column.cast(pa.int32())
    if pt.is_decimal(kind) and not pt.is_decimal128(kind):
        return column.cast(pa.string())
    if pt.is_floating(kind):
        return _unify_zero_and_nan(column)
    return column


def engine_columns(before: Column, after: Column) -> tuple[Column, Column]:
    """The same column of two tables in one type of the engine, by value."""
    old_type, new_type = before.type, after.type
    if old_type == new_type:
        return engine_column(before), engine_column(after)
    if pt.is_null(old_type) or pt.is_null(new_type):
        kind = new_type if pt.is_null(old_type) else old_type
        return engine_column(before.cast(kind)), engine_column(after.cast(kind))
    for test, make in _FAMILIES:
        if test(old_type) and test(new_type):
            return make(before), make(after)
    return _value_text(before), _value_text(after)


def _unify_zero_and_nan(column: Column) -> Column:
    """Floats with one zero and one NaN: ``-0.0 + 0.0`` is ``0.0``."""
    added = pc.add(column, pa.scalar(0.0, column.type))
    is_nan = pc.is_nan(added)
    if not pc.any(is_nan).as_py():
        return added
    return pc.if_else(is_nan, pa.scalar(float("nan"), column.type), added)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind) or pt.is_boolean(kind))


def _number_text(column: Column) -> Column:
    """Numbers as the digits of their value, the same for every type."""
    kind = column.type
    if pt.is_boolean(kind):
        return column.cast(pa.int8()).cast(pa.string())
    if pt.is_integer(kind):
        return column.cast(pa.string())
    if pt.is_decimal(kind):
        return _decimal_text(column)
    return _float_text(column.cast(pa.float64()))


def _decimal_text(column: Column) -> Column:
    text = column.cast(pa.string())
    if pc.any(
        pc.match_substring_regex(text, "[eE]")
    ).as_py():  # Arrow writes very small ones with an exponent
        return _map_values(column, _plain_digits)
    cut = pc.replace_substring_regex(text, r"(\.\d*?)0+$", r"\1")
    cut = pc.replace_substring_regex(cut, r"\.$", "")
    return pc.if_else(pc.equal(cut, "-0"), "0", cut)


def _float_text(column: Column) -> Column:
    plain = _unify_zero_and_nan(column)
    whole = pc.and_(pc.equal(plain, pc.floor(plain)), pc.less(pc.abs(plain), float(1 << 62)))
    ints = pc.if_else(whole, plain, pa.scalar(None, pa.float64())).cast(pa.int64()).cast(pa.string())
    text = plain.cast(pa.string())
    rest = pc.and_(pc.invert(whole), pc.match_substring_regex(text, "e"))
    if pc.any(rest).as_py():
        text = _map_values(plain, _exact_digits)
    return pc.if_else(whole, ints, text)


def _exact_digits(value: float) -> str:
    """A float as it prints, but exact from 2^53 on, where all floats are whole numbers."""
    return _plain_digits(Decimal(value) if math.isfinite(value) and abs(value) >= 1 << 53 else value)


def _plain_digits(value: Any) -> str:
    """A number without an exponent and without zeros at its end.

    >>> _plain_digits(Decimal("1.10")), _plain_digits(1e-7), _plain_digits(Decimal(1e22))
    ('1.1', '0.0000001', '10000000000000000000000')
    """
    number = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not number.is_finite():
        return str(float(number))
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in {"-0", ""} else text


def _map_values(column: Column, make: Any) -> Column:
    return pa.chunked_array(
        [pa.array([None if v is None else make(v) for v in column.to_pylist()], pa.string())]
    )


# --- times -----------------------------------------------------------------------------------------------------------


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pt.is_timestamp(kind) or pt.is_date(kind))


def _nanoseconds(column: Column) -> Column:
    """Moments, times of day and durations as whole nanoseconds, wider than 64 bits so that no year is too far."""
    kind = column.type
    if pt.is_date32(kind):
        numbers, factor = column.cast(pa.int32()).cast(pa.int64()), _DAY
    else:
        numbers = (column.cast(pa.int32()) if pt.is_time32(kind) else column).cast(pa.int64())
        factor = _TO_NANO[kind.unit]
    # Precision 19 holds any int64, 15 any factor; their product has at most 35 digits.
    return pc.multiply(numbers.cast(pa.decimal128(19, 0)), pa.scalar(Decimal(factor), pa.decimal128(15, 0)))


def _to_bytes(column: Column) -> Column:
    return column.cast(pa.binary())


_FAMILIES: tuple[tuple[Any, Any], ...] = (
    (_is_number, _number_text),
    (_is_moment, _nanoseconds),
    (pt.is_time, _nanoseconds),
    (pt.is_duration, _nanoseconds),
    (lambda t: pt.is_string(t) or pt.is_binary(t), _to_bytes),
)


# --- text compared with another type ---------------------------------------------------------------------------------


def _value_text(column: Column) -> Column:
    """The printed text of a value, numbers without unneeded digits; text that reads as a number is printed like that number."""
    kind = column.type
    if pt.is_boolean(kind):
        return column.cast(pa.string())
    if _is_number(kind):
        return _number_text(column)
    if pt.is_string(kind):
        text = pc.replace_substring_regex(column, r"^(\d{4}-\d\d-\d\d)T", r"\1 ")
        encoded = (
            text.combine_chunks().dictionary_encode()
            if text.num_chunks != 1
            else text.chunk(0).dictionary_encode()
        )
        words = [
            w if w is None or not _SPELLS.fullmatch(w) else _plain_digits(Decimal(w))
            for w in encoded.dictionary.to_pylist()
        ]
        return pa.chunked_array([pa.array(words, pa.string()).take(encoded.indices)])
    if pt.is_timestamp(kind):
        return pc.replace_substring_regex(column.cast(pa.string()), r"\.?0+(Z?)$", r"\1")
    if pt.is_date(kind) or pt.is_time(kind):
        return column.cast(pa.string())
    if pt.is_duration(kind):
        return column.cast(pa.int64()).cast(pa.string())
    return pa.chunked_array(
        [pa.array([None if v is None else v.hex() for v in column.to_pylist()], pa.string())]
    )


def row_numbers(first: int, count: int) -> pa.Array:
    """The numbers of ``count`` rows from ``first`` on."""
    return pa.array(np.arange(first, first + count, dtype=np.int64))


def decode_column(array: pa.Array) -> Column:
    """An array as a column without an encoding: no dictionary, and text in one layout."""
    kind = array.type
    if arrow_kind(kind) == "string":
        array = array.cast(pa.string())
    elif pt.is_dictionary(kind):
        array = array.cast(kind.value_type)
    return pa.chunked_array([array])


def equal_mask(column: Column, value: pa.Scalar) -> Any:
    """A NumPy mask of the rows where a column holds this value; null equals null, and NaN equals NaN."""
    if not value.is_valid:
        return pc.is_null(column).to_numpy(zero_copy_only=False)
    if pt.is_floating(value.type) and value.as_py() != value.as_py():
        return pc.fill_null(pc.is_nan(column), False).to_numpy(zero_copy_only=False)
    return pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False)
