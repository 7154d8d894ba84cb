from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
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


def test_a_row_whose_label_came_during_what_it_is_judged_on_trains_nothing() -> None:
    """Its label tells of the days that are held out. Seen red with only the time of the event compared, in both kinds of split."""
    labels = NEXT_DAY.copy()
    labels[8] = 27 * DAY_US  # of day 3; the hold-out is day 26 to 30
    split = time_split(DAYS, labels, cutoff_us=40 * DAY_US, holdout_us=5 * DAY_US)
    assert DAYS[split.holdout].min() == 26 * DAY_US
    assert 8 not in split.train
    assert labels[split.train].max() <= 25 * DAY_US
    for train, validation in expanding_folds(DAYS, labels, folds=3, fold_us=5 * DAY_US):
        assert 8 not in train
        assert labels[train].max() < DAYS[validation].min()


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


NAN = float("nan")


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (np.array([1.0, NAN, 2.0, NAN, 1.0, 2.0]), 1),
        (["a", "b", None, "a", "b", "c"], 2),
        (["a", "b", "c", NAN, "b", "c"], 3),
        (np.array(["a", None, "b", "a", "b", "c"], dtype=object), 1),
        (np.array(["2024-01-01", "NaT", "2024-01-03", "2024-01-01", "NaT", "NaT"], dtype="datetime64[D]"), 1),
        (np.ma.array([1, 2, 3, 1, 2, 3], mask=[0, 0, 1, 0, 0, 0]), 2),
        (pa.chunked_array([["a", "b"], [None, "a", "b", "c"]]), 2),
        (pd.Series([1, 2, None, 1, 2, 3], dtype="Int64"), 2),
        (pd.Series(["a", "b", None, "a", "b", "c"]), 2),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else "",
)
def test_a_row_without_a_group_or_a_class_is_refused(keys, row) -> None:
    """Seen red: all rows with NaN were one group of one fold, and all of them fell into fold 0 as a class."""
    for function, what in ((group_folds, "group"), (stratified_folds, "class")):
        with pytest.raises(InvalidInput, match=rf"rows have no {what}; got first at row {row}"):
            function(keys, folds=2)


def test_keys_of_several_types_are_not_made_text() -> None:
    keys = [1, "1", 2, "2", 1, "1", 2, "2"]
    folds = group_folds(keys, folds=4)
    assert sorted(len(v) for _, v in folds) == [2, 2, 2, 2]
    for _, validation in folds:
        assert len({(type(keys[i]), keys[i]) for i in validation}) == 1
    with pytest.raises(InvalidInput, match="shape"):
        group_folds(np.zeros((3, 2)), folds=2)


@pytest.mark.parametrize(
    "make", [list, np.asarray, pd.Series, pa.array], ids=["list", "numpy", "pandas", "arrow"]
)
def test_folds_do_not_depend_on_what_holds_the_keys(make) -> None:
    for keys in (list(range(10, 0, -1)) * 2, [f"g{i % 7}" for i in range(40)], [0.5, 1.5] * 10):
        for function in (group_folds, stratified_folds):
            folds = min(3, len(set(keys)))
            expected = function(np.asarray(keys), folds=folds, seed=5)
            found = function(make(keys), folds=folds, seed=5)
            assert all((a == b).all() for (_, a), (_, b) in zip(expected, found, strict=True))


def test_times_beyond_64_bits_do_not_wrap_into_unlabelled_rows() -> None:
    labels = NEXT_DAY.astype(np.uint64)
    labels[0] = 2**64 - 1
    with pytest.raises(InvalidInput, match="beyond 64 bits"):
        time_split(DAYS, labels, cutoff_us=40 * DAY_US, holdout_us=DAY_US)
