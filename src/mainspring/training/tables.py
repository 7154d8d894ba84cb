"""Rows of any kind as an Arrow table: what is committed, and what an estimator's inputs are read from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from mainspring.errors import InvalidInput, near


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
        return pa.table({str(name): _make_array(str(name), values) for name, values in rows.items()})
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
    return pa.table({str(name): _make_array(str(name), frame[name]) for name in frame.columns})


def _require_unique(names: Sequence[str], what: str) -> None:
    """Raise :class:`InvalidInput` for two columns of one name as texts, such as 1 and "1": the last would take the place of the first."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidInput(
            f"the {what} have two columns of one name", value=twice[0], next_step="Give each its own name."
        )


def read_labels(labels: Any, *, rows: int, taken: Sequence[str], what: str = "labels") -> dict[str, Any]:
    """Labels as columns by name: of a Series its own name, else ``target``; of several targets one column for each.

    ``taken`` are the names of the inputs, which no label may have. Raises :class:`InvalidInput` if there are not ``rows`` of them.
    """
    if getattr(labels, "ndim", 1) == 2 and getattr(labels, "shape", (0, 0))[1] == 1:
        labels = labels.iloc[:, 0] if hasattr(labels, "iloc") else np.asarray(labels)[:, 0]
    if getattr(labels, "ndim", 1) == 2 or isinstance(labels, pa.Table):
        table = read_table(labels, what=what)
        plain = [f"target_{i}" for i in range(table.num_columns)]
        named = plain if isinstance(labels, np.ndarray) else table.column_names
        columns = dict(zip(named, table.columns, strict=True))
    else:
        name = getattr(labels, "name", None)
        columns = {
            str(name) if name not in (None, "") else "target": _make_array("the labels", _unwrap(labels))
        }
    for values in columns.values():
        if len(values) != rows:
            raise InvalidInput(f"there are {len(values)} {what} for {rows} rows", value=len(values))
    return {_free_name(name, taken): values for name, values in columns.items()}


def require_column(table: pa.Table, name: str, *, what: str) -> None:
    """Raise :class:`InvalidInput` if the table has no such column."""
    if name not in table.column_names:
        raise InvalidInput(
            f"the {what} have no such column",
            value=name,
            next_step=near(name, table.column_names, what="column"),
        )


def select_inputs(rows: Any, table: pa.Table, names: Sequence[str]) -> Any:
    """The inputs as a signature is inferred from them: of a pandas or Polars table its own columns, which know their categories."""
    if isinstance(rows, pa.Table | Mapping | Sequence | np.ndarray) or not set(names) <= set(rows.columns):
        return table.select(names)
    import narwhals as nw

    return nw.from_native(rows, eager_only=True).select(names).to_native()


def _unwrap(labels: Any) -> Any:
    return labels.tolist() if isinstance(labels, np.ndarray) and labels.dtype == object else labels


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_target"
    return name


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
    return pa.table({name: _make_array(name, values) for name, values in columns.items()})


def _make_array(name: str, values: Any) -> Any:
    try:
        if isinstance(values, pa.Array | pa.ChunkedArray):
            made = values
        elif hasattr(values, "to_arrow"):
            made = values.to_arrow()
        else:
            made = pa.array(values.tolist() if _is_objects(values) else values, from_pandas=True)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InvalidInput(
            f"a column holds values of no one type: {error}", place=f"column {name!r}"
        ) from None
    if pt.is_dictionary(made.type):
        made = made.cast(made.type.value_type)
    return made


def _is_objects(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == object
