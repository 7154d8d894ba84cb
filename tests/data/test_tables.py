"""Our tables: equal content has the equal digest, whatever carried it; what cannot be kept is refused by name."""

from __future__ import annotations

import datetime as dt
import io
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.tables import (
    MAX_ROWS,
    MIN_ROWS,
    TableWriter,
    content_digest,
    is_ours,
    open_parquet,
    plain_schema,
    write_table,
)
from mainspring.errors import InvalidInput, TooLarge
from mainspring.lineage import Foundation


def everything() -> pa.Table:
    utc = dt.datetime(2013, 1, 1, 5, tzinfo=dt.UTC)
    return pa.table(
        {
            "i": pa.array([1, None, 3], pa.int32()),
            "u": pa.array([1, 2, 2**64 - 1], pa.uint64()),
            "f": [1.5, None, float("nan")],
            "s": ["a", None, "ü" * 10],
            "e": ["", None, ""],
            "b": [True, None, False],
            "d": [dt.date(2013, 1, 1), None, dt.date(1969, 1, 1)],
            "t": pa.array([utc, None, utc], pa.timestamp("us", "UTC")),
            "z": pa.array([utc, None, utc], pa.timestamp("ns", "Europe/Berlin")),
            "naive": pa.array([1, None, 2], pa.timestamp("s")),
            "m": [Decimal("1.20"), None, Decimal("-3.40")],
            "w": pa.array([Decimal("1.2"), None, None], pa.decimal256(60, 2)),
            "x": [b"\x00", None, b""],
            "c": pa.array(["k", None, "k"]).dictionary_encode(),
            "n": pa.nulls(3),
            "h": pa.array([1, None, 2], pa.duration("s")),
            "q": pa.array([1, None, 2], pa.time32("s")),
            "日本": [1, 2, 3],
        }
    )


def stored(table: pa.Table) -> pa.Table:
    sink = io.BytesIO()
    write_table(sink, table)
    sink.seek(0)
    return pq.read_table(sink)


def test_content_survives_our_parquet_with_its_types() -> None:
    table = everything()
    back = stored(table)
    schema = plain_schema(table.schema, place="t")
    assert back.schema.equals(schema)
    assert (
        back.drop_columns(["f", "h"]).to_pylist() == table.cast(schema).drop_columns(["f", "h"]).to_pylist()
    )
    assert content_digest(back) == content_digest(table)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_digest_does_not_see_chunks(rows: int) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": rng.normal(size=5000),
            "s": [str(i) if i % 7 else None for i in range(5000)],
            "b": [bool(i % 3) for i in range(5000)],
        }
    )
    pieces = pa.concat_tables([table.slice(i, rows) for i in range(0, 5000, rows)])
    assert content_digest(pieces) == content_digest(table)


@pytest.mark.parametrize(
    "same",
    [
        lambda t: t.set_column(0, "s", t["s"].dictionary_encode()),
        lambda t: t.set_column(0, "s", t["s"].cast(pa.large_string())),
        lambda t: t.replace_schema_metadata({"written": "by somebody"}),
        lambda t: t.cast(pa.schema([pa.field("s", pa.string(), nullable=True), t.schema.field("x")])),
        lambda t: t.set_column(
            1, "x", pa.array(np.frombuffer(np.uint64(0xFFF8000000000001).tobytes() * 2, dtype="<f8"))
        ),
    ],
    ids=["dictionary", "large", "metadata", "nullability", "nan payload"],
)
def test_digest_does_not_see_encodings(same: object) -> None:
    table = pa.table({"s": ["a", "b"], "x": [float("nan")] * 2})
    assert content_digest(same(table)) == content_digest(table)  # type: ignore[operator]


@pytest.mark.parametrize(
    "other",
    [
        {"s": ["ab", "c"], "n": [1, 2]},
        {"s": ["a", "bc"], "n": [2, 1]},
        {"s": ["a", None], "n": [1, 2]},
        {"s": ["a", ""], "n": [1, 2]},
        {"n": [1, 2], "s": ["a", "bc"]},
        {"t": ["a", "bc"], "n": [1, 2]},
        {"s": ["a", "bc"], "n": [1.0, 2.0]},
        {"s": ["a", "bc", None], "n": [1, 2, None]},
        {"s": ["a"], "n": [1]},
    ],
    ids=repr,
)
def test_digest_sees_every_difference(other: dict[str, list[object]]) -> None:
    assert content_digest(pa.table(other)) != content_digest(pa.table({"s": ["a", "bc"], "n": [1, 2]}))


def test_where_a_null_stands_matters() -> None:
    assert content_digest(pa.table({"x": [None, 1]})) != content_digest(pa.table({"x": [1, None]}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.none() | st.text(max_size=5), st.none() | st.floats())), st.integers(1, 9))
def test_digest_is_stable_under_slicing_and_storing(
    rows: list[tuple[str | None, float | None]], size: int
) -> None:
    schema = pa.schema([("s", pa.string()), ("f", pa.float64())])
    try:
        table = pa.table([[r[0] for r in rows], [r[1] for r in rows]], schema=schema)
    except UnicodeEncodeError:  # a lone surrogate is not text to Arrow
        return
    parts = [table.slice(i, size) for i in range(0, len(rows), size)]
    whole = content_digest(table)
    assert content_digest(pa.concat_tables(parts) if parts else table) == whole
    assert content_digest(stored(table)) == whole


def test_equal_content_has_the_equal_digest_in_another_process() -> None:
    code = "import pyarrow as pa; from mainspring.data.tables import content_digest as d; print(d(pa.table({'s': ['a', None], 'x': [1.5, 2]})))"
    other = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert other == content_digest(pa.table({"s": ["a", None], "x": [1.5, 2]}))


def test_the_digest_format_is_frozen() -> None:
    """A change of this value orphans every dataset version in the field: it needs a new format name and a migration."""
    table = pa.table(
        {"i": [1, None, 3], "f": [0.5, float("nan"), None], "s": ["a", "", None], "b": [True, None, False]}
    )
    assert content_digest(table) == "388f511f32f6089dad50b249dc8384d60996a2b47d5e6bc37dd1e18d4dfa392e"


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"a": [[1]]}, "list<"),
        ({"a": [{"x": 1}]}, "struct<"),
        ({"": [1]}, "column name"),
        ({"a\n": [1]}, "column name"),
        ({"a" * 300: [1]}, "column name"),
        ({}, "no columns"),
    ],
    ids=["list", "struct", "empty name", "control", "long", "none"],
)
def test_what_a_version_cannot_hold_is_refused_by_name(columns: dict[str, list[object]], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        content_digest(pa.table(columns))


def test_duplicate_columns_and_too_many_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"occurs twice; got a; in table"):
        content_digest(pa.table([[1], [2]], names=["a", "a"]))
    with pytest.raises(TooLarge):
        plain_schema(pa.schema([(f"c{i}", pa.int8()) for i in range(10_001)]), place="t")


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1", b"a,b\n1,2\n", b"PAR1" + b"\0" * 100 + b"PAR1"],
    ids=["empty", "magic", "csv", "hollow"],
)
def test_bytes_that_are_no_parquet_are_refused(data: bytes) -> None:
    with (
        pytest.raises(InvalidInput, match="not a readable Parquet"),
        open_parquet(io.BytesIO(data), place="upload"),
    ):
        pass


def groups(table: pa.Table, size: int) -> tuple[bytes, list[int]]:
    sink = io.BytesIO()
    writer = TableWriter(sink, table.schema)
    for batch in table.to_batches(max_chunksize=size):
        writer.write(batch)
    writer.close()
    with open_parquet(sink, place="t") as file:
        assert is_ours(file, table.schema)
        assert content_digest(file.read()) == content_digest(table)
        return sink.getvalue(), [
            file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
        ]


def test_row_groups_end_where_the_content_says_whatever_the_batches() -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=600_000), "s": ["a", None] * 300_000})
    one, sizes = groups(table, 100_000)
    other, again = groups(table, 65_521)
    assert (one, sizes) == (other, again)
    assert len(sizes) > 1
    assert all(MIN_ROWS <= n <= MAX_ROWS for n in sizes[:-1])
    less = pa.concat_tables([table.slice(0, 1000), table.slice(1010)])
    assert groups(less, 100_000)[1] == [sizes[0] - 10, *sizes[1:]]


def test_row_groups_are_bounded_where_all_rows_are_equal() -> None:
    _, sizes = groups(pa.table({"x": np.zeros(MAX_ROWS * 2 + 5)}), 1 << 16)
    assert sizes == [MAX_ROWS, MAX_ROWS, 5]


def test_an_edit_stores_little(foundation: Foundation) -> None:
    """What the layout is for: a changed cell, a deleted run of rows and appended rows share the rest with the version before."""
    rng = np.random.default_rng(1)
    table = pa.table({"id": np.arange(200_000), "x": rng.normal(size=200_000)})

    def new_bytes(edited: pa.Table) -> int:
        sink = io.BytesIO()
        write_table(sink, edited)
        before = foundation.objects.stats().stored_bytes
        with foundation.objects.writing() as writer:
            writer.put(sink.getvalue(), table=True)
        return foundation.objects.stats().stored_bytes - before

    whole = new_bytes(table)
    values = table["x"].to_numpy().copy()
    values[77_777] += 1
    edits = [
        table.set_column(1, "x", pa.array(values)),
        pa.concat_tables([table.slice(0, 50_000), table.slice(50_010)]),
        pa.concat_tables([table, table.slice(0, 10)]),
    ]
    for edited in edits:
        assert new_bytes(edited) < whole / 10
