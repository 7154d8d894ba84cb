"""Rows of any kind as an Arrow table: what a signature is inferred from, and what is committed with a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from mainspring.errors import InvalidInput


def read_table(rows: Any, *, what: str = "rows") -> pa.Table:
    """A pandas, Polars or Arrow table, a mapping of columns, an array, or a list of dicts or of rows, as an Arrow table.

    The columns of an array are x0, x1, ... as scikit-learn names them. Raises :class:`InvalidInput` for anything else.
    """
    if isinstance(rows, pa.Table):
        _require_unique(rows.column_names, what)
        return rows
    if hasattr(rows, "columns"):
        _require_unique([str(name) for name in rows.columns], what)
    if isinstance(rows, np.ndarray):
        return _read_array(rows, what)
    if isinstance(rows, Mapping):
        _require_unique([str(name) for name in rows], what)
        return pa.table({str(name): make_array(str(name), values) for name, values in rows.items()})
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes) and len(rows):
        if all(isinstance(row, Mapping) for row in rows):
            return pa.Table.from_pylist([dict(row) for row in rows])
        return _read_array(
            np.array([list(row) for row in rows]) if _same_kind(rows) else _object_rows(rows), what
        )
    import narwhals as nw

    try:
        frame = nw.from_native(rows, eager_only=True)
    except TypeError:
        raise InvalidInput(
            f"the {what} are no table",
            value=type(rows).__name__,
            next_step="Give a pandas, Polars or Arrow table, a mapping of columns, an array, or a list of rows.",
        ) from None
    return pa.table({str(name): make_array(str(name), frame[name]) for name in frame.columns})


def make_array(name: str, values: Any) -> Any:
    """The values of a column as an Arrow array, NaN of pandas and Python as null. Raises :class:`InvalidInput` for values of no one type."""
    try:
        if isinstance(values, pa.Array | pa.ChunkedArray):
            made = values
        elif hasattr(values, "to_arrow"):
            made = values.to_arrow()
        else:
            made = pa.array(values.tolist() if _is_objects(values) else values, from_pandas=True)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InvalidInput(
            f"a value of a column is a number, a truth value or a string, or a time, and all are of one type: {error}",
            place=f"column {name!r}",
        ) from None
    if pt.is_dictionary(made.type):
        made = made.cast(made.type.value_type)
    return made


def _require_unique(names: Sequence[str], what: str) -> None:
    """Raise :class:`InvalidInput` for two columns of one name as texts, such as 1 and "1": the last would take the place of the first."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidInput(
            f"the {what} have two columns of one name", value=twice[0], next_step="Give each its own name."
        )


def _same_kind(rows: Sequence[Any]) -> bool:
    """Whether all values are numbers: an array of numbers and texts would make texts of the numbers."""
    return all(
        isinstance(v, int | float | np.number) and not isinstance(v, bool)
        for row in rows[:1]
        for v in _as_row(row)
    )


def _as_row(row: Any) -> Sequence[Any]:
    if isinstance(row, str | bytes) or not isinstance(row, Sequence | np.ndarray):
        raise InvalidInput(
            "a row of a list is a list of values, or a mapping of columns", value=type(row).__name__
        )
    return row  # type: ignore[return-value]


def _object_rows(rows: Sequence[Any]) -> Any:
    width = len(_as_row(rows[0]))
    array = np.empty((len(rows), width), dtype=object)
    for i, row in enumerate(rows):
        if len(_as_row(row)) != width:
            raise InvalidInput("rows have different lengths", value=i)
        array[i] = list(row)
    return array


def _read_array(rows: Any, what: str) -> pa.Table:
    if rows.ndim != 2:
        raise InvalidInput(
            f"the {what} are an array of two dimensions",
            value=rows.shape,
            next_step="Reshape it: one line for each row.",
        )
    columns = {f"x{i}": rows[:, i] for i in range(rows.shape[1])}
    return pa.table({name: make_array(name, values) for name, values in columns.items()})


def _is_objects(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == object
