"""Which rows train and which judge, by the kind of split; and the folds among those that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.automl.dates import is_date
from mainspring.training.automl.problem import Problem, labels_of, time_numbers
from mainspring.training.splits import (
    DAY_US,
    Rows,
    expanding_folds,
    group_folds,
    stratified_folds,
    time_split,
)

FOLDS = 5
TIME_FOLDS = 4
HOLDOUT = 0.2
_ENOUGH_BLOCKS = 10
_MAX_FOLD_ROWS = 20_000


@dataclass(frozen=True)
class Parts:
    """Row numbers of a problem's table. ``folds`` count within the training rows. ``kind`` says how they were made."""

    train: Rows
    holdout: Rows
    folds: list[tuple[Rows, Rows]]
    kind: str


def divide(problem: Problem, *, seed: int) -> Parts:
    """The hold-out (a fifth of the rows) and the folds of the rest: newest by time, whole groups, or at random.

    Raises :class:`InvalidInput` if there are too few times or groups to divide.
    """
    table = problem.table
    if problem.time is not None:
        ranks = _ranks(time_numbers(table[problem.time]))
        newest, boundary = int(ranks.max()), int(ranks[int(len(ranks) * (1 - HOLDOUT)) - 1])
        if newest == boundary:
            raise InvalidInput(
                "too many of the newest rows have one time",
                place=f"column {problem.time!r}",
                next_step="Give a finer time, or leave time out.",
            )
        split = time_split(ranks, ranks, cutoff_us=newest, holdout_us=newest - boundary)
        within = ranks[split.train]
        folds = expanding_folds(
            within, within, folds=TIME_FOLDS, fold_us=max(len(within) // (TIME_FOLDS + 2), 1), min_train=10
        )
        folds = _with_classes(problem, split.train, folds)
        return Parts(split.train, split.holdout, folds, f"time: the newest by {problem.time!r} are held out")
    if problem.group is not None:
        groups = np.asarray(_codes(table[problem.group]))
        if len(np.unique(groups)) < 4:
            raise InvalidInput(
                "too few groups", value=len(np.unique(groups)), place=f"column {problem.group!r}", next_step="At least 4 are needed."
            )  # fmt: skip
        train, holdout = group_folds(groups, folds=min(FOLDS, len(np.unique(groups)) - 1), seed=seed)[0]
        count = min(FOLDS, len(np.unique(groups[train])))
        folds = _with_classes(problem, train, group_folds(groups[train], folds=count, seed=seed + 1))
        return Parts(train, holdout, folds, f"group: whole groups of {problem.group!r} are held out")
    labels = _classes_or_zeros(problem)
    train, holdout = stratified_folds(labels, folds=round(1 / HOLDOUT), seed=seed)[0]
    folds = stratified_folds(labels[train], folds=FOLDS, seed=seed + 1)
    kind = "at random" if problem.task is Task.REGRESSION else "at random, with the classes' shares"
    return Parts(train, holdout, folds, kind)


def _with_classes(problem: Problem, train: Rows, folds: list[tuple[Rows, Rows]]) -> list[tuple[Rows, Rows]]:
    """The folds whose training rows have more than one value of the target: of the others nothing can be learned."""
    labels = labels_of(problem.table, problem.target, problem.task)[train]
    usable = [(t, v) for t, v in folds if len(np.unique(labels[t])) > 1]
    if not usable:
        raise InvalidInput(
            "the older rows have one value of the target only",
            place=f"column {problem.target!r}",
            next_step="Give rows in which it changes, or hold out by something else.",
        )
    return usable


def blocks_of(table: pa.Table, *, time: str | None, group: str | None) -> Any | None:
    """What groups dependent rows: the group, the day or the hour; None if each row is one."""
    if group is not None:
        return np.asarray(_codes(table[group]))
    if time is not None and is_date(table[time].type):
        micros = table[time].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        for length in (DAY_US, DAY_US // 24):
            keys = micros // length
            if len(np.unique(keys)) >= _ENOUGH_BLOCKS:
                return keys
    return None


def thinned(rows: Rows, most: int, seed: int) -> Rows:
    """The rows, or ``most`` of them drawn evenly, in their order."""
    if len(rows) <= most:
        return rows
    drawn: Rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]
    return drawn


def limit_folds(folds: list[tuple[Rows, Rows]], seed: int) -> list[tuple[Rows, Rows]]:
    """Folds with at most 20,000 rows to validate on each."""
    return [(train, thinned(validation, _MAX_FOLD_ROWS, seed)) for train, validation in folds]


def _ranks(times: Any) -> Rows:
    """For each row, how many are strictly older: folds then hold equal numbers of rows, however rows lie in time."""
    older: Rows = np.searchsorted(np.sort(times), times, side="left").astype(np.int64)
    return older


def _codes(column: Any) -> Any:
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    if encoded.null_count:
        raise InvalidInput(
            f"{encoded.null_count} rows have no group",
            next_step="Leave these rows out, or give each of them a group.",
        )
    return encoded.indices


def _classes_or_zeros(problem: Problem) -> Any:
    if problem.task is Task.REGRESSION:
        return np.zeros(problem.table.num_rows)
    return np.unique(labels_of(problem.table, problem.target, problem.task), return_inverse=True)[1]
