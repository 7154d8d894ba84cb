"""Profiles: what they count, that parts sum to the whole, that no data makes them raise."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from mainspring.data.profile import ProfileBuilder, column_of, finite, histogram, merge, profile_of, quantiles
from mainspring.errors import InvalidInput
from mainspring.records.base import from_json, to_json
from mainspring.records.profile import ColumnProfile, Profile


def only(profile: Profile) -> ColumnProfile:
    assert len(profile.columns) == 1
    return profile.columns[0]


def test_numbers_are_exact_while_they_fit_the_sketch() -> None:
    values = [float(v) for v in range(200)]
    column = only(ProfileBuilder().add({"x": values}).build())
    assert (column.type, column.rows, column.nulls, column.invalid, column.k) == ("float64", 200, 0, 0, 400)
    assert (column.low, column.high) == (0.0, 199.0)
    assert column.mean == pytest.approx(99.5)
    assert column.std == pytest.approx(np.std(values))
    assert histogram(column, [10.0, 100.0]) == pytest.approx([10, 90, 100])
    assert quantiles(column, [0.0, 0.5, 1.0]) == pytest.approx([0, 100, 199], abs=1)


def test_large_columns_stay_within_the_stated_error() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    column = only(profile_of(pa.table({"x": values})))
    ps = [0.05, 0.25, 0.5, 0.75, 0.95]
    for p, value in zip(ps, quantiles(column, ps), strict=True):
        assert abs((values < value).mean() - p) < 0.012
    assert sum(histogram(column, [-1.0, 0.0, 1.0])) == pytest.approx(200_000)


def test_nulls_invalid_and_wrong_types_are_told_apart() -> None:
    """What reads as the column's type is counted ("7" and True in x, 1 in b), what does not is invalid."""
    builder = ProfileBuilder(types={"x": "float64", "c": "string", "b": "bool"})
    builder.add(
        {
            "x": [1, None, math.nan, math.inf, "7", True],
            "c": ["a", None, 3, "a", "", ["z"]],
            "b": [True, False, None, 1, "no", True],
        }
    )
    profile = builder.build()
    x, c, b = profile.columns
    assert (x.nulls, x.invalid, finite(x), x.high) == (1, 2, 3, 7.0)
    assert (c.nulls, c.invalid, c.counts) == (1, 2, {"a": 2, "": 1})
    assert (b.nulls, b.invalid, b.counts) == (1, 1, {"true": 3, "false": 1})


def test_a_nan_in_arrow_is_invalid_and_a_null_is_null() -> None:
    column = only(profile_of(pa.table({"x": pa.array([1.0, math.nan, None, -math.inf])})))
    assert (column.nulls, column.invalid, finite(column)) == (1, 2, 1)


def test_columns_and_arrow_give_the_same_profile() -> None:
    data = {"x": [1.5, None, 3.0], "i": [1, 2, None], "c": ["a", None, "b"], "b": [True, None, False]}
    assert ProfileBuilder().add(data).build() == profile_of(pa.table(data))


def test_times_decimals_and_dictionaries_count_as_what_they_mean() -> None:
    moment = dt.datetime(2013, 1, 1, tzinfo=dt.UTC)
    table = pa.table(
        {
            "t": pa.array([moment], pa.timestamp("ms", "Europe/Berlin")),
            "d": pa.array([dt.date(2013, 1, 1)]),
            "m": pa.array([Decimal("1.25")]),
            "c": pa.array(["a"]).dictionary_encode(),
            "z": pa.array([b"raw"]),
        }
    )
    t, d, m, c, z = profile_of(table).columns
    assert (t.type, t.low) == ("timestamp", 1356998400.0)
    assert (d.type, d.low) == ("timestamp", 1356998400.0)
    assert (m.type, m.low) == ("float64", 1.25)
    assert (c.type, c.counts) == ("string", {"a": 1})
    assert (z.type, z.other, z.nulls) == ("binary", 1, 0)


def test_a_window_of_batches_equals_the_whole() -> None:
    rng = np.random.default_rng(3)
    table = pa.table({"x": rng.normal(size=300), "c": rng.choice(["a", "b", "c"], 300)})
    whole = profile_of(table)
    parts = ProfileBuilder()
    merged: Profile | None = None
    for start in range(0, 300, 37):
        part = table.slice(start, 37)
        parts.add(part)
        merged = profile_of(part) if merged is None else merge(merged, profile_of(part))
    assert merged is not None
    for other in (parts.build(), merged):
        x, c = other.columns
        assert (other.rows, x.low, x.high) == (300, whole.columns[0].low, whole.columns[0].high)
        assert (x.mean, x.std) == pytest.approx((whole.columns[0].mean, whole.columns[0].std))
        assert c == whole.columns[1]
        assert histogram(x, [0.0]) == histogram(whole.columns[0], [0.0])


def test_merging_columns_that_only_one_side_has_counts_nulls() -> None:
    profile = merge(
        ProfileBuilder().add({"a": [1.0]}).build(), ProfileBuilder().add({"b": ["x", "y"]}).build()
    )
    a, b = profile.columns
    assert (profile.rows, a.rows, a.nulls, a.high) == (3, 3, 2, 1.0)
    assert (b.rows, b.nulls, b.counts) == (3, 1, {"x": 1, "y": 1})


def test_merging_a_type_flip_keeps_the_reference_and_counts_the_rest_invalid() -> None:
    column = only(
        merge(ProfileBuilder().add({"a": [1.0]}).build(), ProfileBuilder().add({"a": ["x", "y"]}).build())
    )
    assert (column.type, column.rows, column.invalid, finite(column)) == ("float64", 3, 2, 1)


def test_a_column_that_comes_late_or_goes_missing_is_null_there() -> None:
    profile = ProfileBuilder().add({"a": [1.0, 2.0]}).add({"b": [3.0]}).build()
    a, b = profile.columns
    assert (profile.rows, a.rows, a.nulls, b.rows, b.nulls) == (3, 3, 1, 3, 2)


def test_categories_are_bounded() -> None:
    builder = ProfileBuilder()
    for start in range(0, 20_000, 1000):
        builder.add({"c": [f"v{n}" for n in range(start, start + 1000)] + ["often"] * 50})
    column = only(builder.build())
    assert len(column.counts) == 256
    assert column.counts["often"] == 1000
    assert sum(column.counts.values()) + column.other == 21_000


def test_a_very_long_category_is_cut_and_stays_distinct() -> None:
    column = only(ProfileBuilder().add({"c": ["x" * 10_000 + "1", "x" * 10_000 + "2", "\ud800"]}).build())
    assert len(column.counts) == 3
    assert all(len(key) < 200 for key in column.counts)
    to_json(column)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None, None],
        [math.nan, math.inf],
        [1.7976931348623157e308, -1.7976931348623157e308],
        [10**400, -(10**400), 2**70],
        [[1], {}, object()],
        [True, 1, 1.0, "1", None],
        np.array([], dtype=np.float64),
        np.array([1, 2], dtype=np.int8),
        np.array([True, False]),
        np.array(["a", "b"]),
        [np.float64(1.0), np.int64(2)],
    ],
    ids=lambda v: repr(v).split(" at 0x")[0],
)
def test_no_data_makes_a_profile_raise_and_all_its_numbers_are_finite(values: object) -> None:
    builder = ProfileBuilder().add({"x": values}).add({"x": [1.0]})
    profile = builder.build()
    again = from_json(to_json(profile), Profile)
    assert again == profile
    both = merge(profile, profile)
    for column in (only(profile), only(both)):
        for number in (
            column.low,
            column.high,
            column.mean,
            column.std,
            *quantiles(column, [0.1, 0.9]),
            *histogram(column, [0.0, 1.0]),
        ):
            assert number is None or math.isfinite(number)
        assert column.nulls + column.invalid + finite(column) == column.rows
        if column.kll:
            assert sum(histogram(column, [0.0, 1.0])) == pytest.approx(finite(column))


def test_bad_cut_points_ranks_and_lengths_are_refused() -> None:
    column = only(ProfileBuilder().add({"x": [1.0]}).build())
    for edges in ([1.0, 1.0], [2.0, 1.0], [math.nan], [math.inf]):
        with pytest.raises(InvalidInput, match="cut points"):
            histogram(column, edges)
    with pytest.raises(InvalidInput, match="rank"):
        quantiles(column, [1.5])
    with pytest.raises(InvalidInput, match="length"):
        ProfileBuilder().add({"x": [1.0], "y": []})


def test_a_damaged_sketch_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(InvalidInput, match="malformed"):
        quantiles(ColumnProfile(name="x", type="float64", rows=1, kll="AAAA"), [0.5])
    assert column_of(Profile(rows=0, columns=[]), "x") is None
