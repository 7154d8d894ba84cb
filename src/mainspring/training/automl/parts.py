"""Which rows train and which judge, by the kind of split; and the folds among those that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.automl.problem import Problem, read_target, read_times
from mainspring.training.blocks import encode_groups
from mainspring.training.splits import (
    Rows,
    draw_rows,
    expanding_folds,
    group_folds,
    stratified_folds,
    time_split,
)

FOLDS = 5
TIME_FOLDS = 4
HOLDOUT = 0.2
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
        ranks = _rank_times(read_times(table[problem.time]))
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
        folds = _keep_folds_with_classes(problem, split.train, folds)
        return Parts(split.train, split.holdout, folds, f"time: the newest by {problem.time!r} are held out")
    if problem.group is not None:
        groups = np.asarray(encode_groups(table[problem.group]))
        if len(np.unique(groups)) < 4:
            raise InvalidInput(
                "too few groups", value=len(np.unique(groups)), place=f"column {problem.group!r}", next_step="At least 4 are needed."
            )  # fmt: skip
        train, holdout = group_folds(groups, folds=min(FOLDS, len(np.unique(groups)) - 1), seed=seed)[0]
        count = min(FOLDS, len(np.unique(groups[train])))
        folds = _keep_folds_with_classes(
            problem, train, group_folds(groups[train], folds=count, seed=seed + 1)
        )
        return Parts(train, holdout, folds, f"group: whole groups of {problem.group!r} are held out")
    labels = _encode_classes(problem)
    train, holdout = stratified_folds(labels, folds=round(1 / HOLDOUT), seed=seed)[0]
    folds = stratified_folds(labels[train], folds=FOLDS, seed=seed + 1)
    kind = "at random" if problem.task is Task.REGRESSION else "at random, with the classes' shares"
    return Parts(train, holdout, folds, kind)


def _keep_folds_with_classes(
    problem: Problem, train: Rows, folds: list[tuple[Rows, Rows]]
) -> list[tuple[Rows, Rows]]:
    """The folds whose training rows have more than one value of the target: of the others nothing can be learned."""
    labels = read_target(problem.table, problem.target, problem.task)[train]
    usable = [(t, v) for t, v in folds if len(np.unique(labels[t])) > 1]
    if not usable:
        raise InvalidInput(
            "the older rows have one value of the target only",
            place=f"column {problem.target!r}",
            next_step="Give rows in which it changes, or hold out by something else.",
        )
    return usable


def limit_folds(folds: list[tuple[Rows, Rows]], seed: int) -> list[tuple[Rows, Rows]]:
    """Folds with at most 20,000 rows to validate on each."""
    return [(train, draw_rows(validation, _MAX_FOLD_ROWS, seed)) for train, validation in folds]


def _rank_times(times: Any) -> Rows:
    """For each row, how many are strictly older: folds then hold equal numbers of rows, however rows lie in time."""
    older: Rows = np.searchsorted(np.sort(times), times, side="left").astype(np.int64)
    return older


def _encode_classes(problem: Problem) -> Any:
    if problem.task is Task.REGRESSION:
        return np.zeros(problem.table.num_rows)
    return np.unique(read_target(problem.table, problem.target, problem.task), return_inverse=True)[1]
