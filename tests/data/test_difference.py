"""Differences: files, columns and rows, exact in count and bounded in what they show."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal as D

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.difference import row_difference, tree_difference, type_changes
from mainspring.errors import InvalidInput
from mainspring.records.base import to_json
from mainspring.records.data import TableColumn
from mainspring.records.objects import ObjectRef


def test_rows_by_key() -> None:
    before = pa.table({"id": [1, 2, 3, None], "x": [1.0, 2.0, float("nan"), None], "gone": [0] * 4})
    after = pa.table({"id": [None, 3, 2, 5], "x": [None, float("nan"), 2.5, 0.0], "new": [0] * 4})
    diff = row_difference(before, after, ["id"])
    assert (diff.added, diff.removed, diff.changed, diff.unchanged) == (1, 1, 1, 2)
    assert diff.added_sample == [{"id": 5, "x": 0.0}]
    assert diff.removed_sample == [{"id": 1, "x": 1.0}]
    (change,) = diff.changed_sample
    assert (change.key, change.before, change.after) == ({"id": 2}, {"x": 2.0}, {"x": 2.5})


def test_rows_as_a_bag_and_in_another_order() -> None:
    before = pa.table({"x": [1, 1, 2, None]})
    assert row_difference(before, pa.table({"x": [None, 2, 1, 1]}), []).reordered
    diff = row_difference(before, pa.table({"x": [1, 3, 3]}), [])
    assert (diff.added, diff.removed, diff.unchanged, diff.reordered) == (2, 3, 1, False)


def test_names_that_an_engine_would_misread() -> None:
    before = pa.table({"a": [1], "A": [2], 'q"x': [3], "a.b": [4], "日本": [5]})
    after = pa.table({"a": [1], "A": [9], 'q"x': [3], "a.b": [4], "日本": [6]})
    diff = row_difference(before, after, ["a", 'q"x'])
    assert (diff.changed, diff.changed_sample[0].after) == (1, {"A": 9, "日本": 6})


def test_columns_of_another_type_are_compared_as_text() -> None:
    diff = row_difference(
        pa.table({"k": [1, 2], "x": [1, 2]}), pa.table({"k": [1, 2], "x": ["1", "two"]}), ["k"]
    )
    assert (diff.changed, diff.changed_sample[0].before, diff.changed_sample[0].after) == (
        1,
        {"x": 2},
        {"x": "two"},
    )


AT = dt.datetime(2024, 3, 5, 6, 7, 8, tzinfo=dt.UTC)
NAIVE = AT.replace(tzinfo=None)
NAN = float("nan")
FIRST, LAST = (dt.datetime.fromisoformat(t) for t in ("0001-01-01", "9999-12-31T23:59:59.999999"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.array([AT], pa.timestamp("ms", "UTC")), pa.array([AT], pa.timestamp("ns", "Asia/Tokyo"))),
        (pa.array([NAIVE], pa.timestamp("us")), pa.array([NAIVE], pa.timestamp("ms"))),
        (pa.array([NAIVE.date()]), pa.array([NAIVE.date()]).cast(pa.timestamp("us"))),
        (pa.array([D("2.50")]), pa.array([D("2.5000")], pa.decimal256(60, 4))),
        (pa.array([D("2.50")]), pa.array([2.5])),
        (pa.array([D("0.10")]), pa.array([0.1])),
        (pa.array([7], pa.int8()), pa.array([7], pa.uint64())),
        (pa.array([True, False]), pa.array([1, 0])),
        (pa.array([1e18, -3.0, 0.5]), pa.array([D("1000000000000000000.0"), D("-3.0"), D("0.5")])),
        (pa.array([2**60 + 2**10]), pa.array([float(2**60 + 2**10)])),
        (pa.array([0.5, NAN, None]), pa.array([0.5, NAN, None], pa.float32())),
        (pa.array([-0.0]), pa.array([0.0])),
        (pa.array([dt.time(1, 2)], pa.time32("ms")), pa.array([dt.time(1, 2)], pa.time64("ns"))),
        (pa.array([dt.timedelta(1)], pa.duration("ms")), pa.array([dt.timedelta(1)], pa.duration("us"))),
        (pa.array(["é"]), pa.array(["é".encode()])),
        (pa.array(["1.50", "x"]), pa.array(["1.50", "x"]).dictionary_encode().cast(pa.string())),
        (pa.nulls(2), pa.array([None, None], pa.string())),
        (pa.array([3, 4]), pa.array(["3", "4"])),
        (pa.array([1.0]), pa.array(["1.0"])),
        (pa.array([NAIVE.date()]), pa.array([str(NAIVE.date())])),
        (pa.array([FIRST, LAST], pa.timestamp("us")), pa.array([FIRST, LAST], pa.timestamp("us", "UTC"))),
    ],
    ids=lambda a: str(a.type),
)  # fmt: skip
def test_the_same_value_in_another_type_is_no_change_of_a_row(before: pa.Array, after: pa.Array) -> None:
    """Seen red: version 0.1 called each of these rows changed, or ended in the engine's own exception."""
    ids = list(range(len(before)))
    one, two = pa.table({"id": ids, "x": before}), pa.table({"id": ids, "x": after})
    keyed, bag = row_difference(one, two, ["id"]), row_difference(one, two, [])
    assert (keyed.changed, keyed.added, keyed.removed, keyed.unchanged) == (0, 0, 0, len(ids))
    assert (bag.added, bag.removed, bag.reordered) == (0, 0, False)
    by_value = (
        row_difference(one.select(["x"]), two.select(["x"]), ["x"])
        if len(set(before.to_pylist())) == len(ids)
        else None
    )
    assert by_value is None or by_value.unchanged == len(ids), "a key is compared by value as well"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.array([2**53 + 1]), pa.array([float(2**53)])),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1])),
        (pa.array([1], pa.timestamp("ns", "UTC")), pa.array([2], pa.timestamp("ns", "UTC"))),
        (pa.array([1], pa.time64("ns")), pa.array([2], pa.time64("ns"))),
        (pa.array([1], pa.duration("ns")), pa.array([2], pa.duration("ns"))),
        (pa.array([1500], pa.timestamp("us")), pa.array([1], pa.timestamp("ms"))),
        (pa.array([D("2.50")]), pa.array([D("2.501")])),
        (pa.array([D(10**45)], pa.decimal256(60, 2)), pa.array([D(10**45 + 1)], pa.decimal256(60, 2))),
        (pa.array([0.1]), pa.array([0.1], pa.float32())),
        (pa.array(["007"]), pa.array([7])),
        (pa.array([None], pa.int64()), pa.array([0], pa.int32())),
        (pa.array([NAN]), pa.array([None], pa.float64())),
    ],
    ids=lambda a: str(a.type),
)  # fmt: skip
def test_another_value_is_a_change_however_near(before: pa.Array, after: pa.Array) -> None:
    """Seen red: the engine cuts nanoseconds of zoned times, and compares whole numbers with floats as floats."""
    diff = row_difference(pa.table({"id": [1], "x": before}), pa.table({"id": [1], "x": after}), ["id"])
    assert (diff.changed, diff.unchanged) == (1, 0)
    (change,) = diff.changed_sample
    to_json(change)
    bag = row_difference(pa.table({"x": before}), pa.table({"x": after}), [])
    assert (bag.added, bag.removed) == (1, 1)
    to_json(bag)


def test_rows_that_repeat_are_counted_as_often_as_they_do() -> None:
    before = pa.table({"x": [1, 1, 1, 2], "t": pa.array([0, 0, 0, 0], pa.timestamp("ms"))})
    after = pa.table({"x": [1.0, 1.0, 2.0, 2.0], "t": pa.array([0, 0, 0, 0], pa.timestamp("us"))})
    diff = row_difference(before, after, [])
    assert (diff.added, diff.removed, diff.unchanged) == (1, 1, 3)
    assert (diff.added_sample[0]["x"], diff.removed_sample[0]["x"]) == (2.0, 1)


def test_what_is_shown_of_values_that_python_cannot_hold() -> None:
    far = pa.table({"id": [1], "x": pa.array([2**62], pa.timestamp("ms"))})
    fine = pa.table({"id": [1], "x": pa.array([1], pa.timestamp("ns", "UTC"))})
    diff = row_difference(far, fine, ["id"])
    assert diff.changed_sample[0].after["x"].endswith("00:00:00.000000001")
    assert isinstance(diff.changed_sample[0].before["x"], str)
    to_json(diff)


def test_tables_without_a_common_column_and_bad_keys() -> None:
    diff = row_difference(pa.table({"x": [1]}), pa.table({"y": [1, 2]}), [])
    assert (diff.added, diff.removed) == (2, 1)
    with pytest.raises(InvalidInput, match="Did you mean 'id'"):
        row_difference(pa.table({"id": [1]}), pa.table({"id": [1]}), ["idd"])
    with pytest.raises(InvalidInput, match="not unique"):
        row_difference(pa.table({"id": [1, 1]}), pa.table({"id": [1]}), ["id"])


def test_samples_are_bounded() -> None:
    diff = row_difference(pa.table({"x": list(range(1000))}), pa.table({"x": list(range(1000, 3000))}), [])
    assert (diff.added, diff.removed, len(diff.added_sample), len(diff.removed_sample)) == (
        2000,
        1000,
        10,
        10,
    )


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.integers(0, 20), st.none() | st.integers(0, 3)),
    st.dictionaries(st.integers(0, 20), st.none() | st.integers(0, 3)),
)
def test_counts_agree_with_python(old: dict[int, int | None], new: dict[int, int | None]) -> None:
    def table(d: dict[int, int | None]) -> pa.Table:
        return pa.table({"k": pa.array(list(d), pa.int64()), "v": pa.array(list(d.values()), pa.int64())})

    diff = row_difference(table(old), table(new), ["k"])
    both = old.keys() & new.keys()
    assert (diff.added, diff.removed) == (len(new.keys() - old.keys()), len(old.keys() - new.keys()))
    assert diff.changed == sum(old[k] != new[k] for k in both)
    bag = row_difference(table(old), table(new), [])
    assert bag.unchanged == len(old.items() & new.items())


def test_trees_and_columns() -> None:
    def tree(**files: str) -> dict[str, ObjectRef]:
        return {path: ObjectRef(digest=mark * 64, size=1) for path, mark in files.items()}

    diff = tree_difference(tree(a="1", b="2", c="3"), tree(a="1", b="9", d="3"))
    assert (diff.added, diff.removed, diff.changed, diff.unchanged) == (["d"], ["c"], ["b"], 1)
    columns = [TableColumn(name="a", type="int64"), TableColumn(name="b", type="string")]
    changes = type_changes(
        columns, [TableColumn(name="a", type="float64"), TableColumn(name="c", type="bool")]
    )
    assert [(c.name, c.before, c.after) for c in changes] == [
        ("a", "int64", "float64"),
        ("b", "string", None),
        ("c", None, "bool"),
    ]
