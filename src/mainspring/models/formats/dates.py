"""Numbers of a date, inside of a model: what repeats of it, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from mainspring.errors import InvalidInput, near
from mainspring.models.formats.columns import instants

PARTS = ("days", "year", "month", "day", "weekday", "hour")
"""``days``: since 1970-01-01, with a fraction. ``month``: 1 to 12. ``day``: of the month. ``weekday``: Monday is 0. All are of UTC."""

DAY_US, HOUR_US = 86_400_000_000.0, 3_600_000_000.0


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer of columns of dates: numbers of each, in the order of ``parts`` (see :data:`PARTS`); a null is NaN.

    It is stored as data like scikit-learn's own. Dates are datetimes (with a zone or of UTC), dates or texts in ISO 8601.
    """

    def __init__(self, parts: Sequence[str] = ("days", "month", "weekday", "hour")) -> None:
        self.parts = parts

    def fit(self, X: Any, y: Any = None) -> DateParts:  # noqa: ARG002, N803 - scikit-learn's names
        """Learn the names of the columns, nothing else."""
        for part in self.parts:
            if part not in PARTS:
                raise InvalidInput(
                    "no such part of a date", value=part, next_step=near(part, PARTS, what="part")
                )
        columns = _split(X)
        self.n_features_in_ = len(columns)
        if all(isinstance(name, str) for name in columns):
            self.feature_names_in_ = np.array(list(columns), dtype=object)
        return self

    def transform(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        """Float64 ``(rows, columns x parts)``."""
        columns = _split(X)
        if len(columns) != self.n_features_in_:
            raise InvalidInput(f"{self.n_features_in_} columns of dates are expected", value=len(columns))
        wide = []
        for name, values in columns.items():
            numbers = compute_parts(instants(str(name), values, len(values)))
            wide += [numbers[part] for part in self.parts]
        return np.column_stack(wide)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """``<column>_<part>`` for each number."""
        names = input_features if input_features is not None else getattr(self, "feature_names_in_", None)
        if names is None:
            names = [f"x{i}" for i in range(self.n_features_in_)]
        return np.array([f"{name}_{part}" for name in names for part in self.parts], dtype=object)


def compute_parts(us: Any) -> dict[str, Any]:
    """All parts of times in microseconds since 1970, float64 ``(n,)``; NaN stays NaN.

    The arithmetic is that of the graph (``onnx.dates``). Year, month and day: H. Hinnant, "chrono-compatible low-level date algorithms".
    """
    # Exact for the years of records.instants: a quotient below 2^17 has digits for a microsecond of a day.
    day = np.floor(us / DAY_US)
    shifted = day + 719_468.0
    era = np.floor(shifted / 146_097.0)
    of_era = shifted - era * 146_097.0
    leaps = np.floor(of_era / 1_460.0) - np.floor(of_era / 36_524.0) + np.floor(of_era / 146_096.0)
    year_of_era = np.floor((of_era - leaps) / 365.0)
    of_year = of_era - (365.0 * year_of_era + np.floor(year_of_era / 4.0) - np.floor(year_of_era / 100.0))
    from_march = np.floor((5.0 * of_year + 2.0) / 153.0)
    month = np.where(from_march < 10, from_march + 3.0, from_march - 9.0)
    year = year_of_era + era * 400.0 + np.where(month <= 2, 1.0, 0.0)
    return {
        "days": us / DAY_US,
        "year": year,
        "month": month,
        "day": of_year - np.floor((153.0 * from_march + 2.0) / 5.0) + 1.0,
        "weekday": (day + 3.0) - 7.0 * np.floor((day + 3.0) / 7.0),
        "hour": np.floor((us - day * DAY_US) / HOUR_US),
    }


def _split(rows: Any) -> dict[Any, Any]:
    """The columns of a table or an array by name or position."""
    if hasattr(rows, "column_names"):  # Arrow
        return {name: rows[name].to_pylist() for name in rows.column_names}
    if hasattr(rows, "columns"):
        return {name: rows[name] for name in rows.columns}
    array = np.asarray(rows)
    if array.ndim != 2:
        raise InvalidInput("columns of dates are a table or an array of two dimensions", value=array.shape)
    return {i: array[:, i] for i in range(array.shape[1])}
