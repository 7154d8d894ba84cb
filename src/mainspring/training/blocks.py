"""Rows that depend on one another: what intervals and paired tests take as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from mainspring.errors import InvalidInput
from mainspring.training.dates import is_date
from mainspring.training.splits import DAY_US

_ENOUGH_BLOCKS = 10


def make_blocks(table: pa.Table, *, time: str | None, group: str | None) -> Any | None:
    """What groups dependent rows: the group, the day or the hour; None if each row is one."""
    if group is not None:
        return np.asarray(encode_groups(table[group]))
    if time is not None and is_date(table[time].type):
        micros = table[time].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        for length in (DAY_US, DAY_US // 24):
            keys = micros // length
            if len(np.unique(keys)) >= _ENOUGH_BLOCKS:
                return keys
    return None


def encode_groups(column: Any) -> Any:
    """A column as a whole number for each of its values. Raises :class:`InvalidInput` for a null."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    if encoded.null_count:
        raise InvalidInput(
            f"{encoded.null_count} rows have no group",
            next_step="Leave these rows out, or give each of them a group.",
        )
    return encoded.indices
