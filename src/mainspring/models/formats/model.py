"""A loaded model as people use it: rows in, labels or numbers out, in the kind of table that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.models.formats.answers import expand_binary
from mainspring.models.formats.columns import is_null
from mainspring.models.formats.predictor import Columns, Predictor, Scores
from mainspring.records.classes import class_labels
from mainspring.records.models import Package, Signature, Task
from mainspring.records.scores import classes_of, meaning_of


class Model:
    """A :class:`~mainspring.models.formats.predictor.Predictor` for people. Safe to call from many threads.

    Rows are a pandas, Polars or Arrow table, a mapping of columns, a list of mappings, or an array with the columns of the signature in
    its order. Further columns are ignored; a nullable column may be missing. What comes back is of the same kind: a pandas Series
    with the rows' index, a Polars Series, an Arrow array, else a NumPy array; several columns are a table with their names.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._labels = class_labels(predictor.signature)

    def __repr__(self) -> str:
        signature = self.signature
        inputs = ", ".join(f"{c.name}: {c.type}{'?' if c.nullable else ''}" for c in signature.inputs)
        return f"<Model {signature.task.value} ({self.package.format}) of {inputs}>"

    @property
    def predictor(self) -> Predictor:
        """What computes the scores, as servers use it."""
        return self._predictor

    @property
    def package(self) -> Package:
        """The manifest."""
        return self._predictor.package

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self._predictor.signature

    @property
    def classes(self) -> list[Any]:
        """The classes as they were given in training, in the order of the probabilities; empty for other tasks."""
        return list(self._labels)

    def compute_scores(self, columns: Columns) -> Scores:
        """See :meth:`Predictor.compute_scores`."""
        return self._predictor.compute_scores(columns)

    def predict(self, rows: Any) -> Any:
        """The label of each row as it was given in training, or its number; of several numbers a table with a column for each.

        Raises :class:`~mainspring.errors.InvalidInput` for a missing column, a value of a wrong type, and a row that the model has no
        answer to.
        """
        scores = self._score(rows)
        signature = self.signature
        if signature.task is Task.VALUES:
            return _like_table(rows, dict(zip(signature.outputs, scores.T, strict=True)))
        if signature.task is Task.REGRESSION:
            return _like_column(rows, scores)
        labels = np.array(self._labels, dtype=object if isinstance(self._labels[0], str) else None)
        return _like_column(rows, labels[classes_of(scores, meaning_of(signature).threshold)])

    def predict_proba(self, rows: Any) -> Any:
        """The probability of each class: a table with a column for each, by the class; of plain rows an array ``(n, classes)``.

        Raises :class:`~mainspring.errors.InvalidInput` as :meth:`predict` does, and for a model that gives no probabilities.
        """
        signature = self.signature
        if not self._labels or signature.scores != "probability":
            raise InvalidInput(
                "this model gives no probabilities",
                value=signature.task.value if not self._labels else "decision values",
                next_step="Use predict" + ("." if not self._labels else " or decision_function."),
            )
        scores = self._score(rows)
        return _like_table(rows, dict(zip(self._labels, expand_binary(scores).T, strict=True)))

    def decision_function(self, rows: Any) -> Any:
        """The decision values of a classifier without probabilities: one for each row, of several classes a table by class."""
        if self.signature.scores != "decision":
            raise InvalidInput(
                "this model gives no decision values", next_step="Use predict or predict_proba."
            )
        scores = self._score(rows)
        if scores.ndim == 1:
            return _like_column(rows, scores)
        return _like_table(rows, dict(zip(self._labels, scores.T, strict=True)))

    def _score(self, rows: Any) -> Scores:
        scores = self._predictor.compute_scores(read_rows(rows, self.signature))
        finite = np.isfinite(scores) if scores.ndim == 1 else np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise InvalidInput(
                "the model has no answer to a row",
                value=int(np.flatnonzero(~finite)[0]),
                place="row",
                next_step="Look for an infinite number, or a null that the estimator does not take.",
            )
        return scores


def read_rows(rows: Any, signature: Signature) -> Columns:
    """Rows of any kind that :class:`Model` takes, as columns by name."""
    if isinstance(rows, Mapping):
        single = next(
            (
                name
                for name, values in rows.items()
                if isinstance(values, str) or (values is not None and not hasattr(values, "__len__"))
            ),
            None,
        )
        if single is not None:
            raise InvalidInput(
                "a mapping gives each column a list of values",
                value=single,
                next_step="One row is a list with one mapping: [row].",
            )
        return rows
    if isinstance(rows, np.ndarray):
        return _read_array(rows, signature)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        if not all(isinstance(row, Mapping) for row in rows):
            raise InvalidInput("a row of a list is a mapping of columns", next_step="Or give an array.")
        given = {c.name for c in signature.inputs if any(c.name in row for row in rows)}
        return {name: [row.get(name) for row in rows] for name in given}
    import narwhals as nw

    try:
        frame = nw.from_native(rows, eager_only=True)
    except TypeError:
        raise InvalidInput(
            "these are no rows",
            value=type(rows).__name__,
            next_step="Give a pandas, Polars or Arrow table, a mapping of columns, a list of mappings or an array.",
        ) from None
    names = {c.name for c in signature.inputs}
    return {name: _read_column(frame[name]) for name in frame.columns if name in names}


def _read_array(rows: Any, signature: Signature) -> Columns:
    if rows.ndim != 2 or rows.shape[1] != len(signature.inputs):
        raise InvalidInput(
            f"an array of rows has {len(signature.inputs)} columns: {', '.join(c.name for c in signature.inputs)}",
            value=rows.shape,
        )
    return {c.name: rows[:, i] for i, c in enumerate(signature.inputs)}


def _read_column(series: Any) -> Any:
    if series.dtype.is_numeric() and not series.null_count():
        return series.to_numpy()
    return [None if is_null(v) or type(v).__name__ in ("NAType", "NaTType") else v for v in series.to_list()]


def _like_column(rows: Any, values: Any) -> Any:
    """An array as a column of the kind of table that ``rows`` is."""
    backend = _backend_of(rows)
    if backend is None:
        return values
    import narwhals as nw

    series = nw.new_series("prediction", values.tolist(), backend=backend).to_native()
    return _with_index(series, rows)


def _like_table(rows: Any, columns: Mapping[Any, Any]) -> Any:
    """Arrays as a table of the kind that ``rows`` is; of plain rows one array with a column for each."""
    backend = _backend_of(rows)
    if backend is None:
        return np.column_stack(list(columns.values()))
    import narwhals as nw

    table = nw.from_dict({str(name): values for name, values in columns.items()}, backend=backend).to_native()
    table = _with_index(table, rows)
    if hasattr(table, "index") and hasattr(table, "columns"):  # pandas keeps the classes as they are
        table.columns = list(columns)
    return table


def _with_index(made: Any, rows: Any) -> Any:
    if hasattr(rows, "index") and hasattr(made, "index") and hasattr(rows, "iloc"):
        made.index = rows.index
    return made


def _backend_of(rows: Any) -> Any:
    if isinstance(rows, Mapping | Sequence | np.ndarray):
        return None
    import narwhals as nw

    return nw.from_native(rows, eager_only=True).implementation
