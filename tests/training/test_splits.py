from __future__ import annotations

import numpy as np
import pytest

from mainspring.errors import InvalidInput
from mainspring.training.splits import DAY_US, expanding_folds, group_folds, stratified_folds, time_split

DAYS = np.repeat(np.arange(1, 31), 4) * DAY_US
NEXT_DAY = DAYS + DAY_US


def test_no_row_whose_label_came_after_the_cutoff_is_trained_or_held_out() -> None:
    labels = NEXT_DAY.copy()
    labels[10] = 29 * DAY_US  # an early event, a very late label
    labels[20] = -1
    split = time_split(DAYS, labels, cutoff_us=25 * DAY_US, holdout_us=5 * DAY_US)
    used = np.concatenate([split.train, split.holdout])
    assert (labels[used] <= 25 * DAY_US).all()
    assert not {10, 20} & set(used.tolist())
    assert split.dropped["unlabelled"] == 1
    assert split.dropped["label_after_cutoff"] == int((labels > 25 * DAY_US).sum())
    assert set((DAYS[split.holdout] // DAY_US).tolist()) == {
        20,
        21,
        22,
        23,
        24,
    }  # the newest labelled, delay or not


def test_no_training_label_arrived_after_the_holdout_began() -> None:
    split = time_split(DAYS, NEXT_DAY, cutoff_us=40 * DAY_US, holdout_us=5 * DAY_US, embargo_us=2 * DAY_US)
    start = int(DAYS[split.holdout].min())
    assert NEXT_DAY[split.train].max() <= start - 2 * DAY_US
    assert split.dropped["embargo"] > 0
    assert len(split.train) + len(split.holdout) + sum(split.dropped.values()) == len(DAYS)


def test_a_window_forgets_the_old() -> None:
    split = time_split(DAYS, NEXT_DAY, cutoff_us=40 * DAY_US, holdout_us=5 * DAY_US, window_us=7 * DAY_US)
    assert DAYS[split.train].min() > int(DAYS[split.holdout].min()) - 9 * DAY_US
    assert split.dropped["outside_window"] > 0


def test_parts_are_in_time_order_whatever_the_order_of_the_rows() -> None:
    order = np.random.default_rng(0).permutation(len(DAYS))
    split = time_split(DAYS[order], NEXT_DAY[order], cutoff_us=40 * DAY_US, holdout_us=5 * DAY_US)
    assert (np.diff(DAYS[order][split.train]) >= 0).all()
    assert len(split.holdout) == 20


@pytest.mark.parametrize(
    "arguments",
    [{"cutoff_us": 0, "holdout_us": DAY_US}, {"cutoff_us": 40 * DAY_US, "holdout_us": 90 * DAY_US}],
)
def test_an_empty_part_is_an_error(arguments) -> None:
    with pytest.raises(InvalidInput):
        time_split(DAYS, NEXT_DAY, **arguments)


def test_times_must_be_whole_microseconds() -> None:
    with pytest.raises(InvalidInput):
        time_split(DAYS.astype(float), NEXT_DAY, cutoff_us=1, holdout_us=1)


def test_expanding_folds_only_look_back() -> None:
    folds = expanding_folds(DAYS, NEXT_DAY, folds=3, fold_us=5 * DAY_US, embargo_us=DAY_US)
    assert len(folds) == 3
    for train, validation in folds:
        assert NEXT_DAY[train].max() <= DAYS[validation].min() - DAY_US
    sizes = [len(t) for t, _ in folds]
    assert sizes == sorted(sizes)
    assert DAYS[folds[-1][1]].max() == DAYS.max()
    with pytest.raises(InvalidInput):
        expanding_folds(DAYS, NEXT_DAY, folds=1, fold_us=60 * DAY_US)


def test_groups_stay_whole_and_balanced() -> None:
    groups = np.repeat([f"g{i}" for i in range(12)], np.arange(1, 13))
    folds = group_folds(groups, folds=3, seed=1)
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
        assert len(train) + len(validation) == len(groups)
        assert abs(len(validation) - len(groups) / 3) <= 2
    with pytest.raises(InvalidInput):
        group_folds(["a", "a"], folds=2)


def test_classes_keep_their_share() -> None:
    y = np.array([1] * 10 + [0] * 90)
    folds = stratified_folds(y, folds=5, seed=3)
    assert [int(y[v].sum()) for _, v in folds] == [2] * 5
    assert [len(v) for _, v in folds] == [20] * 5
    assert sorted(np.concatenate([v for _, v in folds]).tolist()) == list(range(100))
    assert any(
        (a != b).any() for (_, a), (_, b) in zip(folds, stratified_folds(y, folds=5, seed=4), strict=True)
    )
