"""What people bring: frames of every library, files good and bad. A bad one is an error that names it, and commits nothing."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainspring.data import Data, DataClient
from mainspring.errors import InvalidInput, MainspringError, NotFound
from mainspring.lineage import Foundation

VALUES = {"i": [1, 2, 3], "f": [1.5, None, 2.5], "s": ["a", None, "ü"], "b": [True, False, None]}


@pytest.fixture
def data(foundation: Foundation) -> DataClient:
    return DataClient(Data(foundation))


def test_every_kind_of_frame_with_equal_content_is_one_version(data: DataClient, tmp_path: Path) -> None:
    table = pa.table(VALUES)
    rows = [dict(zip(VALUES, values, strict=True)) for values in zip(*VALUES.values(), strict=True)]
    pq.write_table(table, tmp_path / "t.parquet", compression="snappy", row_group_size=1)
    (tmp_path / "t.csv").write_text("i,f,s,b\n1,1.5,a,true\n2,,,false\n3,2.5,ü,\n")
    engine = duckdb.connect()
    relation = engine.from_arrow(table)
    pandas = pd.DataFrame(
        {"i": VALUES["i"], "f": VALUES["f"], "s": VALUES["s"], "b": pd.array(VALUES["b"], dtype="boolean")},
        index=[0, 1, 2],
    )
    sources: dict[str, Any] = {
        "arrow": table, "batch": table.to_batches()[0], "reader": table.to_reader(), "rows": rows, "columns": VALUES, "polars": pl.DataFrame(VALUES),
        "lazy": pl.DataFrame(VALUES).lazy(), "pandas": pandas, "duckdb": relation, "parquet": tmp_path / "t.parquet", "csv": str(tmp_path / "t.csv"),
    }  # fmt: skip
    found = {name: data.commit("d", source).id for name, source in sources.items()}
    engine.close()
    assert set(found.values()) == {found["arrow"]}, found
    assert len(data.list_versions("d").items) == 1


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.csv", b"", "is empty.*Give a file with"),
        ("header.csv", b"a,b\n", "header but no rows.*Give a file with rows"),
        ("ragged.csv", b"a,b\n1,2\n3\n", "cannot be read"),
        ("cyrillic.csv", "щит\nдыня\n".encode("cp1251") * 3, "not of a Western encoding"),
        ("twice.csv", b"a,a\n1,2\n", "occurs twice"),
        ("empty.parquet", b"", "is empty"),
        ("cut.parquet", b"PAR1 and then nothing", "cannot be read"),
        ("text.parquet", b"a,b\n1,2\n", "cannot be read"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00", "cannot be read"),
    ],
)
def test_a_bad_file_is_named_and_commits_nothing(
    data: DataClient, tmp_path: Path, name: str, content: bytes, word: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=word) as caught:
        data.commit("d", path)
    assert name in str(caught.value) or "twice" in word
    assert data.list_datasets() == []
    assert path.read_bytes() == content


def test_a_missing_file_names_its_neighbours(data: DataClient, tmp_path: Path) -> None:
    (tmp_path / "flights.csv").write_text("a\n1\n")
    with pytest.raises(NotFound, match=r"Did you mean 'flights\.csv'"):
        data.commit("d", tmp_path / "fligths.csv")
    with pytest.raises(NotFound):
        data.commit("d", tmp_path / "nowhere" / "x.csv")
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInput, match="holds no file"):
        data.commit("d", tmp_path / "none")


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ([], "no rows"),
        ({}, "no columns"),
        ([{"a": 1}, {"a": "x"}], "column 'a'.*int, str"),
        ({"a": [1, "x"]}, "column 'a'"),
        ([1, 2], "not a dict"),
        ({"a": [1], "b": [1, 2]}, "differ in length"),
        (pd.DataFrame({"a": [1, "x"]}), "do not make a table|cannot be read|column"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "twice|cannot be read|do not make|unique"),
        (pl.DataFrame({"a": [[1], [2]]}), "cannot hold; got large_list|list"),
        (pa.table({"a": [{"x": 1}]}), "struct"),
        (object(), "object"),
        (42, "int"),
        ({"a": [10**400]}, "column 'a'"),
    ],
    ids=lambda v: type(v).__name__ if type(v) is object else repr(v)[:30].replace("\n", " "),
)
def test_a_bad_frame_is_explained_and_commits_nothing(data: DataClient, source: object, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        data.commit("d", source)
    assert data.list_datasets() == []


def test_odd_but_true_content_survives(data: DataClient) -> None:
    berlin = pa.array([dt.datetime(2013, 7, 1, tzinfo=dt.UTC)], pa.timestamp("us", "Europe/Berlin"))
    table = pa.table(
        {"日本 name": pa.array([float("nan")]), "null": pa.nulls(1), "t": berlin, "inf": [float("-inf")]}
    )
    version = data.commit("d", table)
    assert [c.type for c in version.columns] == [
        "float64",
        "null",
        "timestamp[us, tz=Europe/Berlin]",
        "float64",
    ]
    back = data.read("d")
    assert back.schema.names == table.schema.names
    assert back["t"].to_pylist() == table["t"].to_pylist()
    assert back["inf"].to_pylist() == [float("-inf")]


def test_a_table_without_rows_is_a_version(data: DataClient) -> None:
    version = data.commit("d", pa.table({"x": pa.array([], pa.int64())}))
    assert (version.rows, data.read("d").num_rows, data.get_profile("d").rows) == (0, 0, 0)
    assert [c.name for c in data.get_profile("d").columns] == ["x"]


def test_csv_nulls_are_unquoted_words_only(data: DataClient, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('n,s\n1,"NA"\nNA,NA\n3,\n')
    data.commit("d", tmp_path / "t.csv")
    assert data.read("d").to_pydict() == {"n": [1, None, 3], "s": ["NA", None, None]}


def test_a_csv_can_be_kept_as_the_file_it_is(data: DataClient, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\r\n1\r\n")
    version = data.commit("d", tmp_path / "t.csv", kind="files")
    assert (version.kind, [f.path for f in data.list_files("d")]) == ("files", ["t.csv"])
    assert b"".join(data.operations.download(dataset="d", path="t.csv").chunks) == b"a\r\n1\r\n"


def test_p04_a_checkout_writes_only_below_its_target(data: DataClient, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "f").write_bytes(b"x")
    data.commit("d", tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "away")
    with pytest.raises(MainspringError):
        data.checkout("d", "latest", tmp_path / "out")
    assert list((tmp_path / "away").iterdir()) == []
    with pytest.raises(InvalidInput):
        data.checkout("d", "latest", tmp_path / ".git" / "hooks")
