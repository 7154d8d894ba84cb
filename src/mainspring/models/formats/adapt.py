"""Gives models of other libraries the interface that saving asks for, that of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mainspring.models.formats.boosters import library_of
from mainspring.records.models import Signature


def adapt(estimator: Any, sample: Any) -> Any:
    """An estimator with the interface of scikit-learn; one that has it comes back as it is. ``sample``: rows, for their names."""
    if library_of(estimator) is not None:
        from mainspring.models.formats.boosters.adapters import adapt_booster

        return adapt_booster(estimator, list_columns(sample))
    return estimator


def bind(estimator: Any, signature: Signature, tables: Sequence[Mapping[str, Any]]) -> None:
    """Tell an adapted booster what its columns are, and which values they have in these rows."""
    if library_of(getattr(estimator, "model", None)) is not None:
        estimator.bind(signature, tables)


def list_columns(rows: Any) -> list[str]:
    """The names of the columns of a table of any kind, or of a mapping."""
    if isinstance(rows, Mapping):
        return [str(name) for name in rows]
    return [str(name) for name in getattr(rows, "column_names", None) or rows.columns]
