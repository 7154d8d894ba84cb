"""Conversion of equal values to one type: text that reads as a number, truth values as 0 and 1, times as seconds.

Only changes that programs make to values in transit are undone (a CSV read as text, a JSON true, a pandas 0.0). Different
values are never made equal: ``"01"`` is no number, because 1 is not written that way, and neither is a word with digits.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping

TRUTH = {"true": True, "false": False}
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def number_of(text: str) -> float | None:
    """The finite number that a text represents, or None. Spaces around it do not count; leading zeros make it no number.

    >>> [number_of(t) for t in ("7", " 7.0 ", "-1e3", ".5", "01", "+7", "", "nan", "1e999", "7a")]
    [7.0, 7.0, -1000.0, 0.5, None, None, None, None, None, None]
    """
    stripped = text.strip()
    if not stripped or not stripped.isascii() or _NUMBER.fullmatch(stripped) is None:
        return None
    value = float(stripped)
    return value if math.isfinite(value) else None


def moment_of(text: str) -> float | None:
    """Seconds since the epoch of an ISO 8601 date or time (without a zone: UTC), or None.

    >>> moment_of("1970-01-02"), moment_of("1970-01-01T00:00:01Z"), moment_of("7")
    (86400.0, 1.0, None)
    """
    stripped = text.strip()
    if len(stripped) < 10 or stripped[4] != "-":
        return None
    try:
        moment = dt.datetime.fromisoformat(stripped)
    except ValueError:
        return None
    return seconds_of(moment)


def seconds_of(value: dt.date) -> float:
    """Seconds since the epoch of a date or a time; without a zone it is UTC."""
    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    aware = value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)
    return (aware - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds()


def truth_of(text: str) -> bool | None:
    """``true``/``false`` in any case, or None.

    >>> truth_of("True"), truth_of(" FALSE"), truth_of("1")
    (True, False, None)
    """
    return TRUTH.get(text.strip().lower())


def text_of(value: float) -> str:
    """How a number is written as a category: whole ones without a point.

    >>> text_of(7.0), text_of(0.5), text_of(-0.0)
    ('7', '0.5', '0')
    """
    return str(int(value)) if value == math.floor(value) and abs(value) < 2**63 else repr(value)


def numbers_of(counted: Mapping[str, int], *, times: bool = False) -> tuple[dict[float, int], int]:
    """Counts of categories by the number that they read as (``times``: as a date or time), and how many values are no number."""
    out: dict[float, int] = {}
    unread = 0
    for key, count in counted.items():
        value = moment_of(key) if times else number_of(key)
        if value is None:
            unread += count
        else:
            out[value] = out.get(value, 0) + count
    return out, unread
