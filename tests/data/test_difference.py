"""Differences: files, columns and rows, exact in count and bounded in what they show."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.difference import row_difference, tree_difference, type_changes
from mainspring.errors import InvalidInput
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
        {"x": "2"},
        {"x": "two"},
    )


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
