"""Splits, weights and searches of tables whose rows have a time, and labels that arrive later: what :mod:`splits` does for arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mainspring.records.models import Task
from mainspring.training.search import Dimension, Family, search
from mainspring.training.splits import DAY_US, draw_rows, expanding_folds, time_split

if TYPE_CHECKING:
    from mainspring.records.training import SearchResult, TrialResult

EVENT, ARRIVAL = "event_time", "label_arrived_at"
"""The columns that are looked at where no other is named: when it happened, and when its label was known."""


def read_micros(rows: pa.Table, column: str = EVENT) -> Any:
    """A column of times in microseconds since 1970."""
    return rows[column].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()


def take_evenly(rows: pa.Table, most: int, seed: int) -> pa.Table:
    """The rows, or ``most`` of them drawn evenly, in their order."""
    return rows.take(draw_rows(np.arange(rows.num_rows), most, seed))


def split_by_time(
    rows: pa.Table, *, until: str, days: int, event: str = EVENT, arrival: str = ARRIVAL
) -> tuple[pa.Table, pa.Table]:
    """Training rows, and the newest ``days`` as the hold-out; see :func:`~mainspring.training.splits.time_split`.

    ``until`` is the moment of decision (ISO 8601): no row counts whose label arrived later.
    """
    cutoff = round(datetime.fromisoformat(until).timestamp() * 1_000_000)
    parts = time_split(
        read_micros(rows, event), read_micros(rows, arrival), cutoff_us=cutoff, holdout_us=days * DAY_US
    )
    return rows.take(parts.train), rows.take(parts.holdout)


def weigh_by_age(rows: pa.Table, half_life: float, *, event: str = EVENT) -> Any:
    """The weight of each row, 1 on average: half after ``half_life`` days. None if that is 0: all alike."""
    if half_life <= 0:
        return None
    moments = read_micros(rows, event)
    weights = 0.5 ** ((moments.max() - moments) / (half_life * DAY_US))
    return weights / weights.mean()


def search_by_time(
    families: Mapping[str, tuple[Mapping[str, Dimension], Mapping[str, Any]]],
    fit: Callable[[str, Mapping[str, Any], pa.Table], Any],
    rows: pa.Table,
    *,
    inputs: list[str],
    target: str,
    trials: int,
    seed: int,
    folds: int = 3,
    fold_days: int = 5,
    event: str = EVENT,
    arrival: str = ARRIVAL,
    log: Callable[[str, float], None] | None = None,
) -> SearchResult:
    """Tune binary classifiers on folds that go forward in time; of families not shown to be worse the first is selected.

    ``families``: the space and the default params of each, by name. ``fit(name, params, rows)`` returns a fitted estimator. Rows of one
    day are taken as one in comparisons; ``log`` gets the loss of each trial by its name. See :func:`~mainspring.training.search.search`.
    """

    def adapt(name: str) -> Any:
        def fit_rows(params: Mapping[str, Any], chosen: Any) -> Any:
            estimator = fit(name, params, rows.take(chosen))
            return lambda others: estimator.predict_proba(rows.take(others).select(inputs))[:, 1]

        return fit_rows

    moments = read_micros(rows, event)
    parts = expanding_folds(
        moments, read_micros(rows, arrival), folds=folds, fold_us=fold_days * DAY_US, min_train=500
    )
    return search(
        [Family(name, adapt(name), space, default) for name, (space, default) in families.items()],
        rows[target].to_numpy(),
        parts,
        task=Task.BINARY,
        trials=trials,
        blocks=moments // DAY_US,
        seed=seed,
        prefer="simplest",
        on_trial=None if log is None else lambda trial: _log_trial(trial, log),
    )


def _log_trial(trial: TrialResult, log: Callable[[str, float], None]) -> None:
    if trial.loss is not None:
        log(f"trial_{trial.number}_{trial.family}_log_loss", trial.loss)
