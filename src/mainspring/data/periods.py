"""Rules about time: how new a table is, and which hour, day or month a row belongs to.

A time with a zone belongs to the days of its zone; a date, and a time without a zone, are what they say. Where a moment is
needed, they are in UTC. All of it is arithmetic on whole numbers, so that no year is too far. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from mainspring.data.shown import MAX_SAMPLE, plain_rows, plain_values
from mainspring.records.base import seconds
from mainspring.records.data import FailedRow, Finding, FreshnessRule

ZONED_TOLERANCE_S = 300.0
"""Clocks differ: a moment this far ahead is not called future."""
ANY_ZONE_S = 14 * 3600.0 + ZONED_TOLERANCE_S
"""A time without a zone may be of one up to 14 hours ahead of UTC (Kiritimati)."""
Per = Literal["hour", "day", "month"]
_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_COLUMNS = 40


def freshness(rule: FreshnessRule, table: pa.Table, now: datetime) -> Finding:
    """Whether the newest row that is not of the future is new enough, and that no row is of the future."""
    kind, rows = table.schema.field(rule.column).type, table.num_rows
    if not (pt.is_timestamp(kind) or pt.is_date(kind)):
        return _stale(rule, rows, f"the column holds {kind}, not a time")
    numbers, per_second = _numbers(table.column(rule.column))
    zoned = pt.is_timestamp(kind) and kind.tz is not None
    tolerance = (
        seconds(rule.tolerance) if rule.tolerance is not None else ZONED_TOLERANCE_S if zoned else ANY_ZONE_S
    )
    limit = _whole(now + timedelta(seconds=tolerance), per_second)
    ahead = pc.fill_null(pc.greater(numbers, pa.scalar(limit, pa.int64())), False)
    future = int(pc.sum(ahead).as_py() or 0)
    known = numbers.filter(pc.invert(ahead))
    newest = pc.max(known).as_py()
    reasons = []
    if future:
        first = plain_values(table.column(rule.column).filter(ahead).slice(0, 1))[0]
        reasons.append(f"{future} rows are of the future, e.g. {first}")
    if newest is None:
        reasons.append("the column holds no time at all" if not future else "no row is of the past")
        age = None
    else:
        age = (_whole(now, per_second) - newest) / per_second
        if age > seconds(rule.max_age):
            at = pc.index(pc.equal(numbers, newest), True).as_py()
            shown = _moment(newest, per_second) or plain_values(table.column(rule.column).slice(at, 1))[0]
            reasons.append(f"the newest row is of {shown}, older than {rule.max_age}")
    return Finding(
        rule=rule,
        passed=not reasons,
        rows=rows,
        failing=future or int(bool(reasons)),
        value=None if newest is None else newest / per_second,
        reason="; ".join(reasons),
        sample=_rows(rule.column, ahead, table) if future else [],
    )


def _rows(first: str, mask: Any, table: pa.Table) -> list[FailedRow]:
    numbers = pc.indices_nonzero(mask)[:MAX_SAMPLE]
    names = [first, *(n for n in table.column_names if n != first)][:_MAX_COLUMNS]
    rows = plain_rows(table.select(names).take(numbers))
    return [FailedRow(row=n, values=row) for n, row in zip(numbers.to_pylist(), rows, strict=True)]


def _stale(rule: FreshnessRule, rows: int, reason: str) -> Finding:
    return Finding(rule=rule, passed=False, rows=rows, failing=1, reason=reason)


def _numbers(column: Any) -> tuple[Any, int]:
    """Moments as whole numbers since the epoch, and how many of them are a second."""
    kind = column.type
    if pt.is_timestamp(kind):
        return column.cast(pa.int64()), _SECOND[kind.unit]
    if pt.is_date64(kind):
        return column.cast(pa.int64()), 1000
    return pc.multiply(column.cast(pa.int32()).cast(pa.int64()), 86_400), 1


def _whole(at: datetime, per_second: int) -> int:
    """A moment in whole units since the epoch, without a float on the way; as far as 64 bits go."""
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    number = micros * per_second // 10**6
    return max(-(2**63), min(2**63 - 1, number))


def _moment(number: int, per_second: int) -> str | None:
    try:
        return (_EPOCH + timedelta(microseconds=number * 10**6 // per_second)).isoformat()
    except OverflowError:
        return None


# --- periods ---------------------------------------------------------------------------------------------------------


def period_keys(column: Any, per: Per) -> pa.Array:
    """For each row the number of its period: months or days since 1970 by the clock of its zone; hours as their first second in UTC.

    Raises an Arrow error where a time cannot be told by its zone.
    """
    kind = column.type
    zoned = pt.is_timestamp(kind) and kind.tz is not None
    utc, per_second = _numbers(column)
    local = _numbers(pc.local_timestamp(column))[0] if zoned else utc
    missing = pc.is_null(utc).to_numpy()
    clock, at = (_seconds(x, per_second) for x in (local, utc))
    if per == "hour":
        # By the second at which it begins: the hour that a clock shows twice in autumn is two hours.
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
