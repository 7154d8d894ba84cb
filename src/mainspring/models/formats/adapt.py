"""Gives models of other libraries the interface that saving asks for, that of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mainspring.models.formats.boosters import library_of
from mainspring.records.models import Signature


def adapt(estimator: Any, sample: Any) -> Any:
    """An estimator with the interface of scikit-learn; one that has it comes back as it is. ``sample``: rows, for their names.

    Of a pipeline of imbalanced-learn: one without the steps that resample, which do nothing in prediction.
    """
    if library_of(estimator) is not None:
        from mainspring.models.formats.boosters.adapters import adapt_booster

        return adapt_booster(estimator, list_columns(sample))
    if type(estimator).__module__.startswith("statsmodels."):
        from mainspring.models.formats.statsmodels_results import adapt_results, is_results

        if is_results(estimator):
            return adapt_results(estimator, list_columns(sample))
    if type(estimator).__module__ == "imblearn.pipeline" and type(estimator).__qualname__ == "Pipeline":
        from sklearn.pipeline import Pipeline

        steps = [(name, step) for name, step in estimator.steps if not hasattr(step, "fit_resample")]
        return adapt(steps[0][1], sample) if len(steps) == 1 else Pipeline(steps)
    return estimator


def is_adapted(estimator: Any) -> bool:
    """Whether this is a model of another library with the interface of scikit-learn, from :func:`adapt`."""
    return bool(getattr(type(estimator), "adapted", False))


def bind(estimator: Any, signature: Signature, tables: Sequence[Mapping[str, Any]]) -> None:
    """Tell an adapted booster what its columns are, and which values they have in these rows."""
    if is_adapted(estimator) and hasattr(estimator, "bind"):
        estimator.bind(signature, tables)


def list_columns(rows: Any) -> list[str]:
    """The names of the columns of a table of any kind, or of a mapping."""
    if isinstance(rows, Mapping):
        return [str(name) for name in rows]
    return [str(name) for name in getattr(rows, "column_names", None) or rows.columns]
