"""Columns of a request or a table as tensors and as frames: one reading of nulls for every format.

A null number is NaN, a null string is ``""``, whole numbers and truth values are floats. Training code that goes through
:func:`frame` sees rows exactly as serving will.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mainspring.errors import InvalidInput, near
from mainspring.models.formats.predictor import Columns
from mainspring.records.models import Column, Signature

Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.object_]


def numeric_names(signature: Signature) -> list[str]:
    return [column.name for column in signature.inputs if column.type != "string"]


def text_names(signature: Signature) -> list[str]:
    return [column.name for column in signature.inputs if column.type == "string"]


def pick(columns: Columns, inputs: Sequence[Column]) -> tuple[int, list[Any]]:
    """``(rows, values per input column)``; a missing nullable column is all null."""
    rows = -1
    values: list[Any] = []
    for column in inputs:
        found = columns.get(column.name)
        if found is None:
            if not column.nullable:
                raise InvalidInput(
                    "a column of the signature is missing",
                    value=column.name,
                    next_step=near(column.name, columns, what="column"),
                )
            values.append(None)
            continue
        length = len(found)
        if rows not in (-1, length):
            raise InvalidInput(
                "columns have different lengths",
                value=column.name,
                place=f"{length} rows, others have {rows}",
            )
        rows = length
        values.append(found)
    if rows < 0:
        raise InvalidInput("no column was given", next_step="Send at least one column of the signature.")
    return rows, values


def floats(name: str, values: Any, rows: int) -> Floats:
    """A numeric column as float64 ``(rows,)``; null is NaN. Text is refused, even text that looks like a number."""
    if values is None:
        return np.full(rows, np.nan)
    try:
        array = np.asarray(values)
        if array.ndim != 1:
            raise InvalidInput("one number per row is expected", value=values[0], place=f"column {name!r}")
        if array.dtype.kind not in "fiub":
            if array.dtype.kind != "O" or any(isinstance(v, str | bytes) for v in array):
                raise InvalidInput("a number is expected", value=_first_odd(values), place=f"column {name!r}")
            array = np.array([np.nan if v is None else v for v in array.tolist()], dtype=np.float64)
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            "a number is expected", value=_first_odd(values), place=f"column {name!r}"
        ) from None


def strings(name: str, values: Any, rows: int) -> Strings:
    """A string column as objects ``(rows,)``; null (None or NaN) is ``""``."""
    out = np.empty(rows, dtype=object)
    if values is None:
        out[:] = ""
        return out
    # An object array keeps each value as it is; tolist() gives Python's own types in one pass.
    listed = values.tolist() if hasattr(values, "tolist") else values
    for i, value in enumerate(listed):
        out[i] = value if type(value) is str else text(name, value)
    return out


def text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):  # noqa: PLR0124 - NaN is the one value unlike itself
        return ""
    if isinstance(value, str):
        return str(value)
    raise InvalidInput("a string is expected", value=value, place=f"column {name!r}")


def frame(columns: Columns, signature: Signature) -> Any:
    """The rows as an Arrow table, read as every predictor reads them: what to fit a name-addressed estimator on."""
    import pyarrow as pa

    return pa.table(clean(columns, signature))


def clean(columns: Columns, signature: Signature) -> dict[str, Any]:
    """The signature's columns, in its order, as arrays under our reading of nulls."""
    rows, values = pick(columns, signature.inputs)
    return {
        c.name: strings(c.name, v, rows) if c.type == "string" else floats(c.name, v, rows)
        for c, v in zip(signature.inputs, values, strict=True)
    }


def as_estimator_input(columns: Columns, signature: Signature, names: Sequence[str] | None) -> Any:
    """What to hand a scikit-learn estimator: an Arrow table if it was fitted on named columns (``names``), else one array.

    The array has the signature's column order; it is float64 if every column is a number, else of objects.
    """
    cleaned = clean(columns, signature)
    if names is not None:
        import pyarrow as pa

        unknown = sorted(set(names) - set(cleaned))
        if unknown:
            raise InvalidInput(
                "the estimator uses a column that is not in the signature",
                value=unknown[0],
                next_step=near(unknown[0], cleaned, what="column"),
            )
        return pa.table({name: cleaned[name] for name in names})
    if not text_names(signature):
        return np.column_stack(list(cleaned.values()))
    out = np.empty((len(next(iter(cleaned.values()))), len(cleaned)), dtype=object)
    for j, column in enumerate(cleaned.values()):
        out[:, j] = column
    return out


def _first_odd(values: Any) -> object:
    for value in values:
        if not isinstance(value, int | float | np.number | np.bool_ | type(None)):
            return value
    return values
