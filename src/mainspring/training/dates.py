"""Columns of dates in tables."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.types as pt


def is_date(kind: pa.DataType) -> bool:
    return bool(pt.is_timestamp(kind) or pt.is_date(kind))


def parse_times(column: Any) -> Any | None:
    """Dates, times and ISO texts as timestamps of UTC in microseconds; None if the column holds something else."""
    kind = column.type
    if not (is_date(kind) or pt.is_string(kind)) or column.null_count == len(column):
        return None
    for wanted in (pa.timestamp("us"), pa.timestamp("us", "UTC")):  # a text says its zone, or says none
        try:
            return column.cast(wanted, safe=False).cast(pa.timestamp("us", "UTC"))
        except pa.ArrowException:
            continue
    return None
