"""Numbers of a date: a model takes no dates, and the parts of one are what repeats."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

PARTS = ("days", "month", "weekday", "hour")
"""``days``: since 1970-01-01, with a fraction. ``month``: 1 to 12. ``weekday``: Monday is 0. All are of UTC."""

_DAY_US = 86_400_000_000


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


def compute_part(times: Any, part: str) -> Any:
    """One of :data:`PARTS` of timestamps, as float64; null stays null."""
    plain = times.cast(pa.timestamp("us"))
    if part == "days":
        return pc.divide(plain.cast(pa.int64()).cast(pa.float64(), safe=False), float(_DAY_US))
    values = {"month": pc.month, "weekday": pc.day_of_week, "hour": pc.hour}[part](plain)
    return values.cast(pa.float64())
