"""Values of a table as JSON can carry them, for reports and pages. No value of a table makes this raise.

Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

MAX_SAMPLE = 10
_LONG = 200


def json_value(value: Any) -> Any:
    """A value as JSON can carry it: times as ISO 8601, decimals, non-finite numbers and long text as (cut) text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a small table, each value as :func:`json_value` gives it."""
    columns = {name: plain_values(table.column(name)) for name in table.column_names}
    return [{name: values[i] for name, values in columns.items()} for i in range(table.num_rows)]


def plain_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values of a column. A value that Python's types cannot hold (a year beyond 9999, a nanosecond) is given as Arrow's text."""
    kind = column.type
    fine = (pt.is_timestamp(kind) or pt.is_time64(kind) or pt.is_duration(kind)) and kind.unit == "ns"
    values: Sequence[Any]
    try:
        if fine and pc.any(pc.not_equal(column.cast(pa.int64()), _floor_to_microseconds(column))).as_py():
            values = _arrow_texts(column)
        else:
            values = (column.cast(_microsecond_type(kind)) if fine else column).to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        values = _arrow_texts(column)
    return [json_value(v) for v in values]


def _microsecond_type(kind: pa.DataType) -> pa.DataType:
    if pt.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.time64("us") if pt.is_time64(kind) else pa.duration("us")


def _floor_to_microseconds(column: Any) -> Any:
    """Nanoseconds, rounded down to whole microseconds."""
    return pc.multiply(pc.divide(column.cast(pa.int64()), 1000), 1000)


def _arrow_texts(column: Any) -> list[Any]:
    try:
        kind = column.type
        text = pc.local_timestamp(column) if pt.is_timestamp(kind) and kind.tz else column
        return list((text.cast(pa.int64()) if pt.is_duration(kind) else text).cast(pa.string()).to_pylist())
    except pa.ArrowException:
        return [None if not v.is_valid else repr(v) for v in column]
