"""Which rows judge: the newest, whole groups, or a share of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.errors import InvalidInput
from mainspring.training.automl.parts import divide
from mainspring.training.automl.problem import Problem, read_problem

N = 300
RNG = np.random.default_rng(5)


def problem(*, time: str | None = None, group: str | None = None, **columns: Any) -> Problem:
    found = {"x": RNG.normal(size=N), "y": RNG.integers(0, 2, N), **columns}
    return read_problem(pa.table(found), target="y", time=time, group=group)


def test_the_newest_rows_judge_and_rows_of_one_time_stay_together() -> None:
    """Rows come in any order and bunched: 8 times, of which the last three hold a fifth of all rows."""
    found = problem(time="t", t=RNG.permutation(np.repeat(np.arange(8), [100, 60, 40, 30, 10, 20, 20, 20])))
    parts = divide(found, seed=0)
    times = found.table["t"].to_numpy()
    assert times[parts.train].max() < times[parts.holdout].min()
    assert sorted([*parts.train, *parts.holdout]) == list(range(N))
    assert len(parts.holdout) == 60
    within = times[parts.train]
    for train, validation in parts.folds:
        assert within[train].max() < within[validation].min()


def test_times_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(InvalidInput, match="have one time"):
        divide(problem(time="t", t=np.repeat([0, 1], [100, 200])), seed=0)


def test_groups_stay_whole_in_the_holdout_and_in_folds() -> None:
    found = problem(group="g", g=RNG.integers(0, 12, N).astype(str))
    parts = divide(found, seed=0)
    groups = np.array(found.table["g"].to_pylist())
    assert not set(groups[parts.train]) & set(groups[parts.holdout])
    within = groups[parts.train]
    assert len(parts.folds) == 5
    for train, validation in parts.folds:
        assert not set(within[train]) & set(within[validation])


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InvalidInput, match="too few groups"):
        divide(problem(group="g", g=np.repeat(["a", "b", "c"], 100)), seed=0)


def test_classes_keep_their_shares() -> None:
    found = problem(y=np.repeat([0, 1], [270, 30]))
    parts = divide(found, seed=0)
    labels = found.table["y"].to_numpy()
    assert labels[parts.holdout].sum() == 6
    assert sorted(int(labels[parts.train][v].sum()) for _, v in parts.folds) == [4, 5, 5, 5, 5]


def test_a_seed_gives_the_same_rows() -> None:
    found = problem()
    first, second, other = (divide(found, seed=s) for s in (1, 1, 2))
    assert (first.holdout == second.holdout).all()
    assert not np.array_equal(first.holdout, other.holdout)
