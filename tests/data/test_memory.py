"""Rows, columns and frames: nothing that Arrow or a frame library would change in silence gets through."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainspring.data import Data, DataClient
from mainspring.errors import InvalidInput
from mainspring.lineage import Foundation

BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")
NOON = dt.datetime.fromisoformat("2024-06-01T12:00")
NS = pd.Timestamp("2024-01-01 00:00:00.123456789")


@pytest.fixture
def data(foundation: Foundation) -> DataClient:
    return DataClient(Data(foundation))


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ([{1: "a", 2: "b"}, {1: "c", 2: "d"}], {"1": ["a", "c"], "2": ["b", "d"]}),
        ({2020: [1], 2021: [2]}, {"2020": [1], "2021": [2]}),
        ([{np.int64(3): 1}], {"3": [1]}),
        ({dt.date(2024, 1, 2): [1]}, {"2024-01-02": [1]}),
        (pd.DataFrame([[1, 2], [3, 4]]), {"0": [1, 3], "1": [2, 4]}),
        (pd.DataFrame({"x": [1, 2]}, index=["alice", "bob"]), {"index": ["alice", "bob"], "x": [1, 2]}),
        (pd.DataFrame({"x": [1]}, index=pd.Index([17], name="customer")), {"customer": [17], "x": [1]}),
        (pd.DataFrame({"x": [5, 6, 7]})[lambda f: f.x != 6], {"index": [0, 2], "x": [5, 7]}),
        (pd.DataFrame({"x": [5, 6, 7]}).iloc[1:], {"index": [1, 2], "x": [6, 7]}),
        (pd.DataFrame({"x": [5, 6, 7]}).iloc[:2], {"x": [5, 6]}),
        (pd.DataFrame({"index": [1]}, index=["a"]), {"index_1": ["a"], "index": [1]}),
        (pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)])), {"level_0": ["a"], "level_1": [1], "x": [1]}),
        (pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)], names=["k", None])), {"k": ["a"], "level_1": [1], "x": [1]}),
        (pa.Table.from_pandas(pd.DataFrame({"x": [1]}, index=["a"])), {"x": [1], "index": ["a"]}),
        (pd.DataFrame({"x": np.array([1, None, "b"][1:], dtype=object)}), {"x": [None, "b"]}),
    ],
    ids=range(15),
)  # fmt: skip
def test_names_and_indexes_are_kept(data: DataClient, source: object, columns: dict[str, list[Any]]) -> None:
    """Seen red: rows with whole numbers for keys stored nulls, and a labelled index vanished."""
    data.commit("d", source)
    assert data.read("d").to_pydict() == columns


def test_an_index_is_reported_and_may_be_declared(data: DataClient, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2]}, index=["a", "b"])
    version = data.commit("d", frame)
    assert version.reading is not None
    assert "unnamed index" in version.reading.columns[0].notes[0]
    assert data.get_version("d").reading == version.reading
    without = data.commit("d", frame, reading={"index": False})
    assert [c.name for c in without.columns] == ["x"]
    assert "left out" in without.reading.notes[0]
    kept = data.commit("d", pd.DataFrame({"x": [1]}), reading={"index": True})
    assert [c.name for c in kept.columns] == ["index", "x"]
    frame.to_parquet(tmp_path / "f.parquet")
    assert data.commit("d", tmp_path / "f.parquet").columns[1].name == "index"
    assert data.commit("d", pd.DataFrame({"x": [1]})).reading is None


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ({1: ["a"], "1": ["b"]}, "two columns would have one name"),
        ([{1: "a", "1": "b"}], "two columns would have one name"),
        ([{1: "a"}, {"1": "b"}], "two columns would have one name"),
        ([{1: "a"}, {1.0: "b"}], "keys of several types"),
        ([{None: 1}], "not a name"),
        (pd.DataFrame([[1, 2]], columns=[0, "0"]), "two columns would have one name"),
        (pd.DataFrame({("a", "b"): [1]}), "not a name"),
        (pd.DataFrame({"k": [1]}, index=pd.Index([1], name="k")), "occurs twice"),
        ({"a": pd.Series([1, 2], index=[1, 0]), "b": [1, 2]}, "index of its own"),
        ({"\u00e9": [1], "e\u0301": [2]}, "NFC and NFD"),
        ([{"t": NOON}, {"t": NOON.replace(tzinfo=BERLIN)}], r"mixes times with a zone.*row 1"),
        (pd.DataFrame({"t": [NOON, NOON.replace(tzinfo=BERLIN)]}, dtype=object), "mixes times with a zone"),
        ({"t": [NOON.date(), NOON]}, "dates and times"),
        ({"t": [dt.time(1, tzinfo=dt.UTC)]}, "times of day with an offset"),
        ({"s": ["a", b"b"]}, "text and bytes"),
        (pd.DataFrame({"s": ["a", b"b"]}, dtype=object), "text and bytes"),
        ({"x": [2.5, True]}, "numbers and truth values"),
        ({"x": np.array([1, True], dtype=object)}, "numbers and truth values"),
        ({"x": [2**53 + 1, 1.5]}, "column 'x'"),
        ({"x": [2**64]}, "column 'x'"),
        (duckdb.sql("SELECT '10:00:00+02'::TIMETZ AS t"), "TIME WITH TIME ZONE"),
        (pl.DataFrame({"x": [2**100]}, schema={"x": pl.Int128}), "do not make a table"),
        (pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}), "holds Python objects"),
        (pl.LazyFrame({"x": pl.Series([object()], dtype=pl.Object)}), "holds Python objects"),
        (pd.DataFrame({"x": [10, 20]}).to_dict(), "are no list"),
        ({"x": {3, 1}}, "are no list"),
        ({"x": "abc"}, "are no list"),
        ({"x": b"abc"}, "are no list"),
        ({"t": [NOON, 5]}, "times and numbers"),
        ({"t": [NOON.date(), 5]}, "times and numbers"),
        ({"t": [NOON.time(), 5]}, "times and numbers"),
        ({"t": [dt.timedelta(days=1), 5]}, "times and numbers"),
    ],
    ids=range(32),
)  # fmt: skip
def test_what_would_be_changed_is_refused(data: DataClient, source: object, word: str) -> None:
    """Seen red: naive and zoned times merged, a date cut a time, text beside bytes became bytes, a Series' index was ignored.

    Later: of a dict of dicts the keys were committed, of a text its letters, of objects in Polars their addresses, and 5 beside
    a time was five microseconds after 1970.
    """
    with pytest.raises(InvalidInput, match=word):
        data.commit("d", source)
    assert data.list_datasets() == []


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([NS], "timestamp[ns]"),
        ([NS.tz_localize("Europe/Berlin")], "timestamp[ns, tz=Europe/Berlin]"),
        ([pd.Timedelta(1, "ns")], "duration[ns]"),
        ([np.datetime64("2024-01-01T00:00:00.123456789")], "timestamp[ns]"),
        ([Decimal("1.10"), 2], "decimal128(3, 2)"),
        ([1, 2.5], "float64"),
        (np.array([b"a\0b", b"c"]), "binary"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_no_digit_is_cut(data: DataClient, values: list[Any], kind: str) -> None:
    version = data.commit("d", {"x": values})
    assert version.columns[0].type == kind
    column = data.read("d")["x"]
    if "ns" in kind:
        assert column.cast(pa.int64())[0].as_py() == pa.array(pd.Series(values)).cast(pa.int64())[0].as_py()
    else:
        assert column.to_pylist() == list(values)


def test_times_of_several_zones_are_instants_and_said(data: DataClient) -> None:
    values = [NOON.replace(tzinfo=TOKYO), NOON.replace(tzinfo=BERLIN)]
    version = data.commit("d", {"t": values})
    assert version.columns[0].type == "timestamp[us, tz=UTC]"
    assert data.read("d")["t"].to_pylist() == values
    assert "several zones" in version.reading.columns[0].notes[0]
    assert data.commit("d", {"t": values[:1]}).columns[0].type == "timestamp[us, tz=Asia/Tokyo]"


def test_rows_that_lack_a_column_are_said(data: DataClient) -> None:
    version = data.commit("d", [{"a": 1}, {"a": 2, "b": 3}])
    assert data.read("d").to_pydict() == {"a": [1, 2], "b": [None, 3]}
    assert "1 rows do not have it" in version.reading.columns[0].notes[0]


def not_utf8(rows: int = 5, bad: int = 3) -> pa.Table:
    pieces = [b"\xff\xfe" if i == bad else b"ok" for i in range(rows)]
    offsets = struct.pack(f"<{rows + 1}i", *(2 * i for i in range(rows + 1)))
    text = pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(pieces))]
    )
    return pa.table({"n": range(rows), "s": text})


def test_text_that_is_no_utf8_is_refused_at_its_row(data: DataClient, tmp_path: Path) -> None:
    """Seen red: it was committed, and then every reader, check and profile failed on it."""
    pq.write_table(not_utf8(), tmp_path / "t.parquet")
    for source in (not_utf8(), tmp_path / "t.parquet", not_utf8().to_reader(max_chunksize=2)):
        with pytest.raises(InvalidInput, match=r"column 's' holds text that is not UTF-8; got .*row 3"):
            data.commit("d", source)
    body = iter([(tmp_path / "t.parquet").read_bytes()])
    with pytest.raises(InvalidInput, match="row 3"):
        data.operations.commit_table(body=body, dataset="d")
    assert data.list_datasets() == []


def test_a_report_that_is_sent_is_checked(data: DataClient, tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "t.parquet", pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1]}))
        writer.add_key_value_metadata({b"mainspring.reading": b'{"source": "csv", "html": 1}'})
    with pytest.raises(InvalidInput, match="malformed"):
        data.operations.commit_table(body=iter([(tmp_path / "t.parquet").read_bytes()]), dataset="d")


def test_names_that_differ_in_case_are_two_columns_everywhere(data: DataClient) -> None:
    data.commit("d", {"a": [1, 2], "A": [1, 1]})
    data.commit("d", {"a": [1, 2], "A": [1, 3]})
    assert data.read("d").to_pydict() == {"a": [1, 2], "A": [1, 3]}
    assert [c.high for c in data.get_profile("d").columns] == [2, 3]
    assert data.diff("d", 1, 2, key=["a"]).rows.changed_sample[0].after == {"A": 3}
    from mainspring.records.data import UniqueRule

    report = data.check("d", [UniqueRule(columns=["a"]), UniqueRule(columns=["A"])], selector=1)
    assert [f.passed for f in report.findings] == [True, False]


@pytest.mark.parametrize("series", [pd.Series([1, 2], name="a"), pl.Series("a", [1, 2])])
def test_a_series_is_told_to_become_a_table(data: DataClient, series: Any) -> None:
    """Seen red with a message of Narwhals about its own option."""
    with pytest.raises(InvalidInput, match=r"a series is no table.*to_frame\(\)"):
        data.commit("series", series)
