"""Floats that survive a SQL column exactly: SQLite turns NaN into NULL and -0.0 into 0.

A float is stored as two columns: ``value DOUBLE PRECISION`` (for sorting and filters; NULL for NaN) and
``special BIGINT`` (NULL, or the IEEE 754 bits when the column alone would lose the value).
"""

from __future__ import annotations

import math
import struct


def encode_float(value: float) -> tuple[float | None, int | None]:
    """``(value, special)`` for the two columns.

    >>> encode_float(1.5), encode_float(float("nan"))[0]
    ((1.5, None), None)
    """
    if math.isnan(value) or (value == 0 and math.copysign(1, value) < 0) or math.isinf(value):
        bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
        return (None if math.isnan(value) else value), bits
    return value, None


def decode_float(value: float | None, special: int | None) -> float:
    """The inverse of :func:`encode_float`, bit for bit."""
    if special is not None:
        decoded: float = struct.unpack("<d", struct.pack("<q", special))[0]
        return decoded
    return math.nan if value is None else float(value)
