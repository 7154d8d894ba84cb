"""Infers a signature from a table, and from an estimator that was fitted on it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from mainspring.errors import InvalidInput, near
from mainspring.models.formats.answers import innermost, unwrap_search
from mainspring.models.formats.estimators import fitted_names
from mainspring.models.formats.frames import read_table
from mainspring.records.models import Column, Signature, Task

_Type = Literal["float64", "int64", "string", "bool", "datetime"]


def infer(columns: Any, *, task: Task, classes: list[str], outputs: list[str]) -> Signature:
    """See :func:`mainspring.models.formats.infer_signature`."""
    table, categories = _as_table(columns)
    if not table.num_columns:
        raise InvalidInput("a signature needs at least one input column")
    if task is Task.BINARY and len(classes) not in (0, 2):
        raise InvalidInput("a binary task has two classes, [negative, positive]", value=classes)
    inputs = [_describe_column(table, name, categories.get(name, [])) for name in table.column_names]
    return Signature(inputs=inputs, task=task, classes=classes, outputs=outputs)


def infer_for_estimator(estimator: Any, *tables: Any, outputs: list[str]) -> Signature:
    """The signature of a fitted estimator: its task from what it is, its inputs from the rows of all tables.

    An estimator that was fitted on a table has the columns of that table, in their order; one that was fitted on an array has all
    columns of the rows, which must be as many.
    """
    task = find_task(estimator)
    signatures = [infer(table, task=task, classes=[], outputs=outputs) for table in tables]
    columns = {c.name: c for c in signatures[0].inputs}
    for other in signatures[1:]:
        for column in other.inputs:
            if column.name in columns:
                columns[column.name] = _join(columns[column.name], column)
    names = fitted_names(estimator)
    if names is None:
        wanted = getattr(estimator, "n_features_in_", len(columns))
        if wanted != len(columns):
            raise InvalidInput(
                f"the estimator was fitted on {wanted} columns",
                value=f"{len(columns)}: {', '.join(columns)}",
                next_step="Give the rows as the estimator had them, without other columns.",
            )
        names = list(columns)
    if missing := [name for name in names if name not in columns]:
        raise InvalidInput(
            "the rows lack a column that the estimator was fitted on",
            value=missing[0],
            next_step=near(missing[0], columns, what="column"),
        )
    return msgspec.structs.replace(signatures[0], inputs=[columns[name] for name in names])


def _join(a: Column, b: Column) -> Column:
    """A column as two tables have it: null if either holds one; whole numbers beside others are float64, as pandas makes them of gaps."""
    kinds = {a.type, b.type}
    if len(kinds) > 1 and not kinds <= {"int64", "float64"}:
        raise InvalidInput(
            "a column has two types in the rows that were given",
            value=" and ".join(sorted(kinds)),
            place=f"column {a.name!r}",
        )
    kind = a.type if len(kinds) == 1 else "float64"
    return msgspec.structs.replace(a, type=kind, nullable=a.nullable or b.nullable)


def find_task(estimator: Any) -> Task:
    """What a fitted estimator answers: ``values`` for several targets, detectors, clusterings and transformers."""
    from sklearn.base import is_clusterer, is_outlier_detector
    from sklearn.utils import get_tags

    last = innermost(unwrap_search(estimator))
    classes = getattr(estimator, "classes_", None)
    if classes is not None and not isinstance(classes, list) and not _has_several_labels(last):
        return Task.BINARY if len(classes) == 2 else Task.MULTICLASS
    several = isinstance(classes, list) or _count_targets(last) > 1
    groups = is_clusterer(last) or get_tags(last).estimator_type == "density_estimator"
    if several or groups or is_outlier_detector(last) or not hasattr(last, "predict"):
        return Task.VALUES
    return Task.REGRESSION


def _has_several_labels(estimator: Any) -> bool:
    """Whether a classifier answers a 0 or 1 for each of several labels, although it lists them as if they were classes."""
    binarizer = getattr(estimator, "_label_binarizer", getattr(estimator, "label_binarizer_", None))
    kind = getattr(binarizer, "y_type_", "")
    return bool(kind.startswith("multilabel") or getattr(estimator, "multilabel_", False) is True)


def _count_targets(estimator: Any) -> int:
    """How many targets a regressor was fitted on."""
    count = getattr(estimator, "n_outputs_", None)
    if isinstance(count, int):
        return count
    kind = type(estimator).__name__
    if kind.startswith("MultiOutput") or kind.endswith("Chain"):
        return len(estimator.estimators_)
    if (answers := getattr(estimator, "_y", None)) is not None and np.ndim(answers) == 2:  # neighbours
        return int(answers.shape[1])
    intercept = np.asarray(getattr(estimator, "intercept_", 0.0))
    return len(intercept) if intercept.ndim == 1 and np.ndim(getattr(estimator, "coef_", 0.0)) == 2 else 1


def _as_table(rows: Any) -> tuple[Any, dict[str, list[str]]]:
    """Rows as an Arrow table, and the categories of the columns that are categorical in pandas."""
    table = read_table(rows, what="rows of a signature")
    if not hasattr(rows, "iloc"):
        return table, {}
    kinds = {str(name): values.dtype for name, values in rows.items()}
    named = {name: kind.categories for name, kind in kinds.items() if hasattr(kind, "categories")}
    return table, {name: [str(v) for v in categories] for name, categories in named.items()}


def name_columns(rows: Any) -> dict[str, Any]:
    """The columns of an array without names, ``(rows, columns)``: x0, x1, ... as scikit-learn names them."""
    if rows.ndim != 2:
        raise InvalidInput("an array of rows has two dimensions", value=rows.shape)
    return {f"x{i}": rows[:, i] for i in range(rows.shape[1])}


def _describe_column(table: Any, name: str, categories: list[str]) -> Column:
    import pyarrow.compute as pc

    values = table[name]
    kind = _column_type(values.type)
    nulls = values.null_count
    if kind == "float64":
        nulls = pc.sum(pc.is_null(values, nan_is_null=True)).as_py() or 0
    return Column(name=name, type=kind, nullable=bool(nulls), categories=categories)


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
    if pt.is_timestamp(kind) or pt.is_date(kind):
        return "datetime"
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return "string"
    raise InvalidInput(
        "a model input is a number, a truth value or a string",
        value=str(kind),
        next_step="Turn the column into one of these in the feature step, for example a time into its hour.",
    )
