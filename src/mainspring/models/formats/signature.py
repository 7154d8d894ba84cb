"""Infers a signature from a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mainspring.errors import InvalidInput
from mainspring.records.models import Column, Signature, Task

_Type = Literal["float64", "int64", "string", "bool"]


def infer(columns: Any, *, task: Task, classes: list[str]) -> Signature:
    """See :func:`mainspring.models.formats.infer_signature`."""
    import pyarrow as pa

    if isinstance(columns, Mapping):
        table = pa.table({str(name): _arrow_array(str(name), values) for name, values in columns.items()})
    elif isinstance(columns, pa.Table):
        table = columns
    else:
        import narwhals as nw

        frame = nw.from_native(columns, eager_only=True)
        table = pa.table({name: _arrow_array(name, frame[name]) for name in frame.columns})
    if not table.num_columns:
        raise InvalidInput("a signature needs at least one input column")
    if task is Task.BINARY and len(classes) not in (0, 2):
        raise InvalidInput("a binary task has two classes, [negative, positive]", value=classes)
    return Signature(
        inputs=[_describe_column(table, name) for name in table.column_names], task=task, classes=classes
    )


def _arrow_array(name: str, values: Any) -> Any:
    import pyarrow as pa

    try:
        if hasattr(values, "to_arrow"):
            return values.to_arrow()
        return pa.array(values, from_pandas=True)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InvalidInput(
            f"a model input is a number, a truth value or a string: {error}", place=f"column {name!r}"
        ) from None


def _describe_column(table: Any, name: str) -> Column:
    import pyarrow.compute as pc

    values = table[name]
    kind = _column_type(values.type)
    nulls = values.null_count
    if kind == "float64":
        nulls = pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
    return Column(name=name, type=kind, nullable=bool(nulls))


def _column_type(kind: Any) -> _Type:
    import pyarrow.types as pt

    if pt.is_boolean(kind):
        return "bool"
    if pt.is_integer(kind):
        return "int64"
    if pt.is_floating(kind) or pt.is_decimal(kind):
        return "float64"
    if pt.is_dictionary(kind):
        return _column_type(kind.value_type)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return "string"
    raise InvalidInput(
        "a model input is a number, a truth value or a string",
        value=str(kind),
        next_step="Turn the column into one of these in the feature step, for example a time into its hour.",
    )
