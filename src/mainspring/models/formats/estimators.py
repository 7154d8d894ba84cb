"""Gives a fitted scikit-learn estimator rows in the form that it had in training.

An estimator that was fitted on a DataFrame gets a DataFrame (pandas if installed, else Polars, else Arrow); one that was fitted on an
array gets an array. An int64 column is int64 and a bool column is bool unless a null makes it a float, as in pandas. A null text is
None or NaN, whichever the estimator learned; nothing is filled in for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from mainspring.errors import Corrupt, InvalidInput, near
from mainspring.models.formats.answers import compute_class_scores, compute_values, several_answers
from mainspring.models.formats.columns import as_times, floats, instants, is_null, pick, strings
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.records.models import Column, Signature, Task

NullText = Literal["empty", "none", "nan"]
_NULLS: dict[NullText, Any] = {"empty": "", "none": None, "nan": float("nan")}


def fitted_names(estimator: Any) -> list[str] | None:
    """The columns of the DataFrame that the estimator was fitted on; None if it was fitted on an array."""
    names = getattr(estimator, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]


def estimator_input(estimator: Any, columns: Columns, signature: Signature, null_text: NullText) -> Any:
    """The rows in the form that ``estimator`` takes: a DataFrame or an array."""
    rows, values = pick(columns, signature.inputs)
    null = _NULLS[null_text]
    arrays = {
        c.name: strings(c.name, v, rows, null=null) if c.type == "string" else _numbers(c, v, rows)
        for c, v in zip(signature.inputs, values, strict=True)
    }
    names = fitted_names(estimator)
    if names is None:
        return _array(arrays, rows)
    categories = {c.name: c.categories for c in signature.inputs if c.categories}
    for name in names:
        if name not in arrays:
            raise InvalidInput(
                "the estimator uses a column that is not in the signature", value=name, next_step=near(name, arrays, what="column")
            )  # fmt: skip
    return _make_frame({name: arrays[name] for name in names}, categories)


def estimator_scores(
    estimator: Any, columns: Columns, signature: Signature, null_text: NullText = "none"
) -> Scores:
    """What a fitted estimator answers, in the shape of :meth:`Predictor.compute_scores`. Raises what the estimator raises."""
    rows = pick(columns, signature.inputs)[0]
    if rows == 0:
        return np.empty((0, signature.width) if signature.width else 0)
    features = estimator_input(estimator, columns, signature, null_text)
    with np.errstate(all="ignore"):  # an overflow is visible in the answer
        if signature.task is Task.REGRESSION:
            numbers = np.asarray(estimator.predict(features), dtype=np.float64)
            if numbers.size != rows:
                raise several_answers(estimator)
            return numbers.reshape(rows)
        if signature.task is Task.VALUES:
            raw = compute_values(estimator, features)
        else:
            raw = compute_class_scores(estimator, features, signature)
    if signature.task is Task.BINARY and raw.shape == (rows, 2):
        raw = raw[:, 1]
    expected = (rows, signature.width) if signature.width else (rows,)
    if raw.shape != expected:
        raise Corrupt(
            "the model answers in another shape than its signature says",
            value=raw.shape,
            place=f"expected {expected}",
        )
    return raw


def learned_null(estimator: Any) -> NullText:
    """What a null text was in training: what its encoders and imputers learned, else what a DataFrame (NaN) or an array (None) has."""
    learned: set[NullText] = set()
    for part in list_parts(estimator):
        for values in _learned_texts(part):
            learned |= {"none" if v is None else "nan" for v in values if is_null(v)}
    if len(learned) == 1:
        return learned.pop()
    return "nan" if not learned and fitted_names(estimator) is not None else "none"


def _learned_texts(part: Any) -> Iterator[Sequence[Any]]:
    for values in getattr(part, "categories_", None) or ():
        if np.asarray(values).dtype == object:
            yield values
    statistics = getattr(part, "statistics_", None)
    if statistics is not None and np.asarray(statistics).dtype == object:
        yield [part.missing_values]


def learned_categories(estimator: Any) -> list[list[Any]]:
    """The categories that the encoders inside the estimator learned, a list for each column, without nulls."""
    return [
        [v.item() if isinstance(v, np.generic) else v for v in values if not is_null(v)]
        for part in list_parts(estimator)
        for values in (getattr(part, "categories_", None) or ())
    ]


def list_parts(estimator: Any, depth: int = 12) -> Iterator[Any]:
    """The estimator and all scikit-learn objects that it holds, depth first; ``depth`` bounds a cycle."""
    if depth == 0:
        return
    yield estimator
    for value in list(getattr(estimator, "__dict__", {}).values()):
        for child in _children(value):
            yield from list_parts(child, depth - 1)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _children(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _children(item)
    elif (hasattr(value, "get_params") and not isinstance(value, type)) or type(
        value
    ).__name__ == "_CalibratedClassifier":
        yield value


def _numbers(column: Column, values: Any, rows: int) -> Any:
    """A numeric column in its own type if it has no null, else as float64 with NaN; times as datetime64 with NaT."""
    if column.type == "datetime":
        return as_times(instants(column.name, values, rows))
    if column.type == "int64" and values is not None:
        exact = np.asarray(values)
        if exact.dtype.kind in "iu" and exact.ndim == 1 and exact.dtype != np.uint64:
            return exact.astype(np.int64)  # a float64 is exact only up to 2^53
    array = floats(column.name, values, rows)
    if (
        column.type == "int64"
        and rows
        and np.all(np.abs(array) < 2.0**63)
        and np.all(array == np.floor(array))
    ):
        return array.astype(np.int64)
    if column.type == "bool" and rows and np.all((array == 0) | (array == 1)):
        return array.astype(bool)
    return array


def _array(arrays: dict[str, Any], rows: int) -> Any:
    if all(column.dtype.kind not in "OM" for column in arrays.values()):
        matrix = np.column_stack(list(arrays.values()))
        return matrix if matrix.dtype != bool else matrix.astype(np.float64)
    out = np.empty((rows, len(arrays)), dtype=object)
    for j, column in enumerate(arrays.values()):
        out[:, j] = column
    return out


def _make_frame(arrays: dict[str, Any], categories: dict[str, list[str]]) -> Any:
    """A DataFrame; a column with categories is categorical in pandas, and a value that is none of them is null."""
    try:
        import pandas as pd
    except ImportError:
        return _polars_or_arrow(arrays)

    def make_column(name: str, values: Any) -> Any:
        if name not in categories:
            return pd.Series(values, dtype=values.dtype)
        kind = {"i": int, "f": float, "b": bool}.get(values.dtype.kind, str)
        known = [text == "True" if kind is bool else kind(text) for text in categories[name]]
        codes = pd.Index(known).get_indexer(values)  # -1, a null, for what is none of them
        return pd.Series(pd.Categorical.from_codes(codes, categories=known))

    return pd.DataFrame({n: make_column(n, v) for n, v in arrays.items()}, columns=list(arrays))


def _polars_or_arrow(arrays: dict[str, Any]) -> Any:
    plain = {n: [None if is_null(v) else v for v in a] if a.dtype == object else a for n, a in arrays.items()}
    try:
        import polars as pl
    except ImportError:
        import pyarrow as pa

        return pa.table(plain)
    return pl.DataFrame(plain)
