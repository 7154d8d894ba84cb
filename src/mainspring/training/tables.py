"""Labels beside rows, and the inputs of an estimator among the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mainspring.errors import InvalidInput, near
from mainspring.models.formats.frames import make_array, read_table


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
            str(name) if name not in (None, "") else "target": make_array("the labels", _unwrap(labels))
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
