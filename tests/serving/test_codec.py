from __future__ import annotations

import json
import math

import pytest

from mainspring.errors import InvalidInput, Malformed, TooManyRows
from mainspring.records.models import Column, Signature, Task
from mainspring.serving.codec import RowCodec, parse_time

MIXED = Signature(
    inputs=[
        Column(name="dep time", type="int64"),
        Column(name="temp", type="float64", nullable=True),
        Column(name="carrier", type="string"),
        Column(name="wet", type="bool"),
    ],
    task=Task.BINARY,
    classes=["0", "1"],
)


@pytest.fixture
def codec() -> RowCodec:
    return RowCodec(MIXED, max_rows=3, max_text=20)


def rows(*inner: str, tail: str = "") -> bytes:
    return ('{"rows":[' + ",".join("{" + row + "}" for row in inner) + "]" + tail + "}").encode()


ROW = '"dep time":515,"temp":1,"carrier":"UA","wet":true'


def test_rows_and_columns_give_the_same_call(codec: RowCodec) -> None:
    by_row = codec.decode(rows(ROW, ROW.replace("515", "517")))
    by_column = codec.decode(
        b'{"columns":{"wet":[true,true],"carrier":["UA","UA"],"temp":[1,1.0],"dep time":[515,517]}}'
    )
    assert by_row == by_column
    assert list(by_row.columns) == ["dep time", "temp", "carrier", "wet"]
    assert by_row.columns["temp"] == [1.0, 1.0]
    assert by_row.rows == 2


def test_a_nullable_column_may_be_null_or_missing(codec: RowCodec) -> None:
    call = codec.decode(rows(ROW.replace("1,", "null,", 1), ROW.replace('"temp":1,', "")))
    assert call.columns["temp"] == [None, None]
    assert codec.decode(b'{"columns":{"wet":[true],"carrier":["UA"],"dep time":[1]}}').columns["temp"] == [
        None
    ]


def test_an_unseen_category_is_allowed(codec: RowCodec) -> None:
    assert codec.decode(rows(ROW.replace("UA", "never:seen"))).columns["carrier"] == ["never:seen"]


def test_key_and_event_time_travel(codec: RowCodec) -> None:
    call = codec.decode(rows(ROW, tail=',"key":"a:b","event_time":"2013-01-01T05:15:00+00:00"'))
    assert (call.key, call.event_us) == ("a:b", 1357017300000000)


@pytest.mark.parametrize(
    "body",
    [
        rows(ROW + ',"wet":false'),
        rows(ROW.replace("UA", ":") + ',"wet":false'),
        rows(
            ROW.replace('"temp":1,', "") + ',"wet":false'
        ),  # a missing nullable key must not pay for a double one
        rows(ROW, tail=',"rows":[{' + ROW + "}]"),
        rows(ROW, tail=',"key":"\\u003a","key":"x"'),
        rows(ROW.replace('"temp":1,', '"\\u0074emp":1,"temp":2,')),
        rows(
            ROW,
            tail=',"key":"\\u003a","event_time":"2013-01-01T00:00:00Z","event_time":"2013-01-01T00:00:00Z"',
        ),
    ],
)
def test_d01_a_key_there_twice_is_refused(codec: RowCodec, body: bytes) -> None:
    """Seen red with the colon count taken out of ``decode``: the last value won."""
    with pytest.raises(Malformed):
        codec.decode(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rows(ROW.replace("515", "true")), "int"),
        (rows(ROW.replace("515", "1.5")), "int"),
        (rows(ROW.replace("515", str(2**63))), "int"),
        (rows(ROW.replace(":1,", ":true,")), "float"),
        (rows(ROW.replace(":1,", ':"1",')), "float"),
        (rows(ROW.replace(":1,", ":1e400,")), "range"),
        (rows(ROW.replace("515", "null")), "null"),
        (rows(ROW.replace("carrier", "carier")), "Did you mean 'carrier'"),
        (rows(ROW.replace('"carrier":"UA",', "")), "carrier"),
        (rows(ROW + ',"extra":1'), "extra"),
        (rows(), "no rows"),
        (b'{"columns":{"wet":[true],"carrier":["UA","UA"],"dep time":[1]}}', "lengths"),
        (b'{"columns":{"wet":[],"carrier":[],"dep time":[]}}', "no rows"),
        (b"{}", "either"),
        (rows(ROW.replace("UA", "\\u0000")), "NUL"),
        (rows(ROW.replace("UA", "x" * 21)), "length"),
        (rows(ROW, tail=',"event_time":"yesterday"'), "event time"),
        (rows(ROW, tail=',"event_time":"0001-01-01T00:00:00Z"'), "event time"),
    ],
)
def test_d07_what_does_not_fit_is_named(codec: RowCodec, body: bytes, says: str) -> None:
    """Seen red with ``forbid_unknown_fields`` off."""
    with pytest.raises(InvalidInput) as caught:
        codec.decode(body)
    assert caught.value.status == 422
    assert says in str(caught.value)


def test_d07_too_many_rows(codec: RowCodec) -> None:
    """Seen red with ``max_length`` removed."""
    with pytest.raises(TooManyRows):
        codec.decode(rows(*[ROW] * 4))


def test_the_error_lists_the_columns(codec: RowCodec) -> None:
    with pytest.raises(InvalidInput, match=r"dep time:int64, temp:float64\?, carrier:string, wet:bool"):
        codec.decode(rows('"x":1'))


def test_times_need_a_zone() -> None:
    assert parse_time("1970-01-01T00:00:01Z") == 1_000_000
    with pytest.raises(InvalidInput):
        parse_time("1970-01-01T00:00:01")


def test_minus_zero_and_tiny_numbers_are_numbers(codec: RowCodec) -> None:
    value = codec.decode(rows(ROW.replace(":1,", ":-0.0,"))).columns["temp"][0]
    assert value == 0
    assert math.copysign(1, value) < 0


ODD = ['say "hi"', "back\\slash", "new\nline"]


@pytest.mark.parametrize("shape", ["rows", "columns"])
def test_a_column_may_have_any_name(shape: str) -> None:
    """Seen red with the names given to msgspec as they are: it makes no type of them, and no deployment of the server was in service."""
    inputs = [Column(name=name, type="int64", nullable=name == ODD[0]) for name in [*ODD, "<column 0>"]]
    codec = RowCodec(Signature(inputs=inputs, task=Task.BINARY, classes=["0", "1"]), max_rows=3, max_text=20)
    row = {name: number for number, name in enumerate(codec.names)}

    def send(row: dict[str, object], *more: dict[str, object]) -> bytes:
        rows = [row, *more]
        return json.dumps(
            {"rows": rows} if shape == "rows" else {"columns": {n: [r[n] for r in rows] for n in row}}
        ).encode()

    call = codec.decode(send(row, row))
    assert (call.rows, list(call.columns)) == (2, codec.names)
    assert call.columns == {name: [number] * 2 for name, number in row.items()}
    del row[ODD[0]]
    assert codec.decode(send(row)).columns[ODD[0]] == [None]
    with pytest.raises(InvalidInput, match=r"Expected `int`, got `str` - at .*back\\slash"):
        codec.decode(send({**row, ODD[1]: "x"}))
    with pytest.raises(InvalidInput, match="unknown field"):
        codec.decode(send({**row, "<column 1>": 3}))
    with pytest.raises(TooManyRows):
        codec.decode(send(row, row, row, row))
    twice = send(row).replace(b'"new\\nline":', b'"new\\nline": 1, "new\\nline":')
    with pytest.raises((Malformed, InvalidInput)):
        codec.decode(twice if shape == "rows" else twice.replace(b": 1,", b": [1],"))


@pytest.mark.parametrize("body", [b'{"dep time":515,"carrier":"UA"}', b'[{"dep time":515}]', b"3"])
def test_a_body_without_rows_is_told_the_shape(codec: RowCodec, body: bytes) -> None:
    """Seen red: an unknown field `dep time`, did you mean 'dep time'?"""
    with pytest.raises(InvalidInput) as refused:
        codec.decode(body)
    assert str(refused.value.next_step).startswith('Send {"rows": [{...}]}. Columns: dep time')
