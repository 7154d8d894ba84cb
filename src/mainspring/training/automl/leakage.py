"""Columns that give the target away by themselves: a code of the outcome, a copy of it in another unit, a gap where it is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from mainspring.metrics.metric import Floats
from mainspring.models.formats.columns import instants
from mainspring.records.models import Task
from mainspring.training.automl.problem import Problem, make_nothing_left_error
from mainspring.training.dates import is_date
from mainspring.training.splits import Rows, draw_rows

CLASSES_EXPLAINED = 0.99
NUMBERS_EXPLAINED = 0.999
SUSPECT = 0.9
"""What a column explains alone to be spoken of, though it is used."""
_RANKS = 0.9995
_LEAST_ERRORS = 10
_ROWS = 5_000
_FOLDS = 3


def leave_out_leaks(
    problem: Problem,
    rows: pa.Table,
    truth: Floats,
    folds: list[tuple[Rows, Rows]],
    keep: Sequence[str],
    *,
    seed: int,
    way_out: str = "",
) -> dict[str, float]:
    """Leave out of ``problem`` the columns that give its target away in the training ``rows``, but for those in ``keep``.

    ``way_out``: what is added to the reason, with ``{column}`` in place of the name. Returns what each column explains alone. Raises
    :class:`~mainspring.errors.InvalidInput` if no column is left.
    """
    shares = measure_shares(rows.select(problem.inputs), truth, folds, problem.task, seed=seed)
    for column, why in find_leaks(shares, problem.task).items():
        if column in keep:
            problem.assumed.append(f"{column!r} is kept, as asked, though {why}")
        else:
            problem.leave_out(column, why + way_out.format(column=repr(column)))
    if not problem.inputs:
        raise make_nothing_left_error(problem)
    return shares


def find_leaks(shares: Mapping[str, float], task: Task) -> dict[str, str]:
    """For each column that alone predicts nearly all of the target: how much. ``shares`` as :func:`measure_shares` gives them."""
    return {
        name: f"it gives the target away: alone it explains {share:.2%} of it"
        for name, share in shares.items()
        if share >= (NUMBERS_EXPLAINED if task is Task.REGRESSION else CLASSES_EXPLAINED)
    }


def measure_shares(
    inputs: pa.Table, truth: Floats, folds: list[tuple[Rows, Rows]], task: Task, *, seed: int
) -> dict[str, float]:
    """How much of the target each column explains alone, on rows that a small tree had not seen; without those where too few rows tell."""
    used = [(draw_rows(t, _ROWS, seed), draw_rows(v, _ROWS, seed)) for t, v in folds[-_FOLDS:]]
    shares = {
        name: _compute_explained_share(_read_numbers(inputs[name]), truth, used, task, seed)
        for name in inputs.column_names
    }
    return {name: share for name, share in shares.items() if share is not None}


def _compute_explained_share(
    values: Floats, truth: Floats, folds: list[tuple[Rows, Rows]], task: Task, seed: int
) -> float | None:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    numbers = task is Task.REGRESSION
    if numbers and (rank := _compute_rank_correlation(values, truth)) is not None and rank >= _RANKS:
        return rank
    wrong = usual = 0.0
    for train, validation in folds:
        if numbers:
            tree = DecisionTreeRegressor(random_state=seed)
            usual += float(((truth[validation] - truth[train].mean()) ** 2).sum())
        else:
            tree = DecisionTreeClassifier(min_samples_leaf=2, random_state=seed)
            usual += float((truth[validation] != np.bincount(truth[train].astype(int)).argmax()).sum())
        predicted = tree.fit(values[train][:, None], truth[train]).predict(values[validation][:, None])
        wrong += float(
            ((truth[validation] - predicted) ** 2).sum()
            if numbers
            else (truth[validation] != predicted).sum()
        )
    if usual <= 0 or (not numbers and usual < _LEAST_ERRORS):
        return None
    return 1.0 - wrong / usual


def _compute_rank_correlation(values: Floats, truth: Floats) -> float | None:
    """Of the rows that have a value, if they are at least half: whatever rises or falls with the target, in any unit."""
    from scipy.stats import rankdata

    there = np.isfinite(values)
    if there.sum() < max(len(values) / 2, 3):
        return None
    first, second = rankdata(values[there]), rankdata(truth[there])
    if first.std() == 0 or second.std() == 0:
        return None
    return abs(float(np.corrcoef(first, second)[0, 1]))


def _read_numbers(column: Any) -> Floats:
    """Numbers as they are, texts as the number of their value, times as microseconds; a null is NaN, which a tree takes as a value of its own."""
    if pt.is_string(column.type):
        codes = column.combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
        return np.asarray(codes.indices.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    if is_date(column.type):
        return instants("date", column, len(column))
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
