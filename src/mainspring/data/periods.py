"""Times as whole numbers, and which hour, day or month they belong to.

A time with a zone belongs to the days of its zone. Dates and times without a zone are used as written; where a moment is
needed, they are in UTC. Everything is whole-number arithmetic, so that every year works. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

ZONED_TOLERANCE_S = 300.0
"""Clocks differ: a moment up to this far ahead of policy time does not count as future."""
ANY_ZONE_S = 14 * 3600.0 + ZONED_TOLERANCE_S
"""A time without a zone may come from a zone up to 14 hours ahead of UTC (Kiritimati)."""
Per = Literal["hour", "day", "month"]
_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moments(column: Any) -> Any:
    """Dates and times as whole numbers since the epoch; see :func:`per_second`."""
    kind = column.type
    if pt.is_timestamp(kind) or pt.is_date64(kind):
        return column.cast(pa.int64())
    return pc.multiply(column.cast(pa.int32()).cast(pa.int64()), 86_400)


def per_second(kind: pa.DataType) -> int:
    """How many units of :func:`moments` a second has."""
    if pt.is_timestamp(kind):
        return _SECOND[kind.unit]
    return 1000 if pt.is_date64(kind) else 1


def whole_units(at: datetime, per_second: int) -> int:
    """A moment in whole units since the epoch, computed without floats and limited to 64 bits."""
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    number = micros * per_second // 10**6
    return max(-(2**63), min(2**63 - 1, number))


def moment_text(number: int, per_second: int) -> str | None:
    """The moment as ISO 8601 in UTC; None beyond the years that Python knows."""
    try:
        return (_EPOCH + timedelta(microseconds=number * 10**6 // per_second)).isoformat()
    except OverflowError:
        return None


# --- periods ---------------------------------------------------------------------------------------------------------


def period_keys(column: Any, per: Per) -> pa.Array:
    """For each row the number of its period: months or days since 1970 by the clock of its zone; hours as their first second in UTC.

    Raises an Arrow error if a time cannot be converted to local time of its zone.
    """
    kind = column.type
    zoned = pt.is_timestamp(kind) and kind.tz is not None
    utc = moments(column)
    local = moments(pc.local_timestamp(column)) if zoned else utc
    missing = pc.is_null(utc).to_numpy()
    clock, at = (_seconds(x, per_second(kind)) for x in (local, utc))
    if per == "hour":
        # By the second in UTC at which it begins: the hour that a clock shows twice in autumn is two periods.
        keys = clock - clock % 3600 - (clock - at)
    elif per == "day":
        keys = clock // 86_400
    else:
        keys = clock.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
    return pa.array(keys, pa.int64(), mask=missing)


def _seconds(numbers: Any, per_second: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(pc.fill_null(numbers, 0).to_numpy(), dtype=np.int64) // per_second


def period_label(key: int | None, kind: pa.DataType, per: Per) -> str | None:
    """The start of a period as ISO 8601 by the clock of the column's zone; an hour of a zoned column with its offset from UTC."""
    if key is None:
        return None
    if per != "hour":
        return f"{np.datetime64(key, 'D' if per == 'day' else 'M').astype('datetime64[D]')}T00:00:00"
    zone = kind.tz if pt.is_timestamp(kind) else None
    if zone is None or zone == "UTC":
        return str(np.datetime64(key, "s"))
    at = pa.array([key], pa.int64()).cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("s", zone))
    try:
        return str(at[0].as_py().isoformat())
    except (ValueError, OverflowError):
        return str(np.datetime64(key, "s"))
