"""Check rules: each counts what breaks it and shows the rows; rules that cannot be right are refused; data never raises."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.data.checks import run_checks
from mainspring.errors import InvalidInput
from mainspring.records.base import to_json
from mainspring.records.data import (
    CheckRule,
    Finding,
    FreshnessRule,
    LabelRateRule,
    NotNullRule,
    RangeRule,
    RegexRule,
    RowCountRule,
    SetRule,
    TypeRule,
    UniqueRule,
)

NOW = dt.datetime(2013, 1, 10, tzinfo=dt.UTC)
NAN = float("nan")


def one(columns: dict[str, Any], rule: CheckRule) -> Finding:
    (finding,) = run_checks(pa.table(columns), [rule], now=NOW)
    return finding


def days(*numbers: int) -> pa.Array:
    return pa.array([dt.datetime(2013, 1, d, 3, tzinfo=dt.UTC) for d in numbers], pa.timestamp("us", "UTC"))


@pytest.mark.parametrize(
    ("columns", "rule", "rows"),
    [
        ({"x": [1.0, None, NAN]}, NotNullRule(column="x"), [1, 2]),
        ({"x": [1.0, None, None, None]}, NotNullRule(column="x", max_null_share=0.5), [1, 2, 3]),
        ({"x": [1.0, -1.0, 11.0, NAN, None]}, RangeRule(column="x", min=0, max=10), [1, 2, 3]),
        ({"x": [Decimal("1.5"), Decimal("2.5")]}, RangeRule(column="x", max=2), [1]),
        ({"x": pa.array([2**64 - 1, 5], pa.uint64())}, RangeRule(column="x", max=10), [0]),
        ({"s": ["a", "b", None, "c"]}, SetRule(column="s", allowed=["a", "b"]), [3]),
        ({"i": [1, 2, 3]}, SetRule(column="i", allowed=[1, 2.0]), [2]),
        ({"b": [True, False]}, SetRule(column="b", allowed=[True]), [1]),
        ({"i": [1, 2]}, SetRule(column="i", allowed=["1"]), [0, 1]),
        ({"s": ["AA", "A", "AAA", None]}, RegexRule(column="s", pattern="[A-Z]{2}"), [1, 2]),
        ({"s": pa.array(["k", "k2"]).dictionary_encode()}, RegexRule(column="s", pattern="k"), [1]),
        ({"a": [1, 1, 2], "b": [1, 1, 1]}, UniqueRule(columns=["a", "b"]), [0, 1]),
        ({"a": [None, None, 2]}, UniqueRule(columns=["a"]), [0, 1]),
        ({"s": ["1", "2.5", "x", "-3e4"]}, TypeRule(column="s", type="number"), [2]),
        ({"s": ["1", "2"]}, TypeRule(column="s", type="int64"), [0, 1]),
        ({"日本": [5, 50]}, RangeRule(column="日本", max=10), [1]),
        ({'q"x': [5, 50]}, RangeRule(column='q"x', max=10), [1]),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_broken_rule_counts_and_shows_its_rows(
    columns: dict[str, Any], rule: CheckRule, rows: list[int]
) -> None:
    finding = one(columns, rule)
    assert not finding.passed
    assert finding.failing == len(rows)
    assert [r.row for r in finding.sample] == rows
    assert finding.reason
    to_json(finding)


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"x": [1.0, None]}, NotNullRule(column="x", max_null_share=0.5)),
        ({"x": [0.0, 10.0, None]}, RangeRule(column="x", min=0, max=10)),
        ({"s": ["a", None]}, SetRule(column="s", allowed=["a"])),
        ({"s": ["AB", None]}, RegexRule(column="s", pattern="[A-Z]{2}")),
        ({"a": [1, 1], "b": [1, 2]}, UniqueRule(columns=["a", "b"])),
        ({"a": [1, 1]}, RowCountRule(min=2, max=2)),
        ({"t": days(9)}, FreshnessRule(column="t", max_age="1d")),
        ({"t": [dt.date(2013, 1, 9)]}, FreshnessRule(column="t", max_age="1d")),
        (
            {"t": days(9).cast(pa.timestamp("ns"))},
            FreshnessRule(column="t", max_age="1d"),
        ),
        ({"b": [True, False]}, TypeRule(column="b", type="bool")),
        ({"x": [1.5]}, TypeRule(column="x", type="number")),
        ({"d": [dt.date(2013, 1, 9)]}, TypeRule(column="d", type="date")),
        ({"y": [1, 0] * 20}, LabelRateRule(column="y", low=0.4, high=0.6)),
        ({"n": pa.nulls(2)}, RangeRule(column="n", min=0)),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_a_rule_that_holds_passes(columns: dict[str, Any], rule: CheckRule) -> None:
    finding = one(columns, rule)
    assert (finding.passed, finding.sample) == (True, [])


def test_row_count_freshness_and_types_give_a_reason() -> None:
    assert "3 rows, wanted at least 5" in one({"a": [1, 2, 3]}, RowCountRule(min=5)).reason
    assert "older than 1d" in one({"t": days(1, 2)}, FreshnessRule(column="t", max_age="1d")).reason
    assert "not a time" in one({"t": [1]}, FreshnessRule(column="t", max_age="1d")).reason
    assert (
        "no time at all"
        in one({"t": pa.array([None], pa.timestamp("us"))}, FreshnessRule(column="t", max_age="1d")).reason
    )
    assert "has no numeric range" in one({"s": ["a"]}, RangeRule(column="s", min=0)).reason
    assert "not text" in one({"x": [1]}, RegexRule(column="x", pattern="a")).reason


def test_label_rate_finds_the_stretch_and_says_which_days() -> None:
    late = [True] * 10 + [False] * 30 + [True] * 35 + [False] * 5 + [True, None] * 3
    when = days(*[1] * 40, *[2] * 40, *[3] * 6)
    finding = one(
        {"late": late, "t": when}, LabelRateRule(column="late", low=0.1, high=0.6, period="t", min_rows=20)
    )
    assert not finding.passed
    assert finding.groups == [{"period": "2013-01-02T00:00:00", "rows": 40, "rate": 0.875}]
    assert finding.failing == 40


def test_label_rate_by_group_and_with_too_few_rows() -> None:
    rule = LabelRateRule(column="y", low=0.2, high=0.8, by="g", min_rows=3)
    finding = one({"y": [1, 1, 1, 0, 1, 0], "g": ["a"] * 3 + ["b"] * 3}, rule)
    assert [g["group"] for g in finding.groups] == ["a"]
    few = one({"y": [1], "g": ["a"]}, rule)
    assert few.passed
    assert "insufficient data" in few.reason
    assert "never" in one({"y": ["yes"], "g": ["a"]}, rule).reason


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (RangeRule(column="distanse", min=0), "Did you mean 'distance'"),
        (UniqueRule(columns=["distance", "nope"]), "no such column"),
        (LabelRateRule(column="distance", low=0, high=1, period="wen"), "no such column"),
        (RangeRule(column="distance"), "holds always"),
        (RangeRule(column="distance", min=2, max=1), "above the upper"),
        (RangeRule(column="distance", min=NAN), "bound is a number"),
        (RowCountRule(), "holds always"),
        (NotNullRule(column="distance", max_null_share=2), "between 0 and 1"),
        (SetRule(column="distance", allowed=[]), "at least one"),
        (UniqueRule(columns=[]), "at least one"),
        (RegexRule(column="distance", pattern="("), "does not compile"),
        (RegexRule(column="distance", pattern="(?=x)"), "does not compile"),
        (FreshnessRule(column="distance", max_age="soon"), "not a duration"),
    ],
    ids=lambda v: repr(v)[:50],
)
def test_a_rule_that_cannot_be_right_is_refused_before_the_data_is_read(rule: CheckRule, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        one({"distance": ["1"], "when": [1]}, rule)


def test_rules_come_from_toml_and_a_misspelt_field_is_refused() -> None:
    raw = [
        {"check": "range", "column": "x", "min": 1, "refuse": False},
        {"check": "unique", "columns": ["a"]},
    ]
    assert msgspec.convert(raw, list[CheckRule]) == [
        RangeRule(column="x", min=1, refuse=False),
        UniqueRule(columns=["a"]),
    ]
    for bad in ({"check": "rnage"}, {"check": "range", "colum": "x"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, CheckRule)


def test_samples_are_bounded_and_their_values_can_be_written_as_json() -> None:
    finding = one(
        {"x": [NAN] * 1000, "s": ["y" * 10_000] * 1000, "z": [b"\xff"] * 1000}, NotNullRule(column="x")
    )
    assert (finding.failing, len(finding.sample)) == (1000, 10)
    values = finding.sample[0].values
    assert values["x"] == "nan"
    assert len(values["s"]) == 201
    assert values["z"] == "ff"
    to_json(finding)


COLUMNS = {
    "f": st.none() | st.floats(),
    "i": st.none() | st.integers(-(2**63), 2**63 - 1),
    "s": st.none() | st.text(alphabet=st.characters(codec="utf-8"), max_size=4),
    "b": st.none() | st.booleans(),
    "t": st.none() | st.integers(-(8 * 10**15), 8 * 10**15),
}
TYPES = {"f": pa.float64(), "i": pa.int64(), "s": pa.string(), "b": pa.bool_(), "t": pa.timestamp("us")}


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 5))
def test_m05_no_data_makes_a_check_raise(data: st.DataObject, rows: int) -> None:
    """Every rule over every type of column, empty and all-null ones included: a finding each, counts within the rows."""
    table = pa.table(
        {
            n: pa.array(data.draw(st.lists(v, min_size=rows, max_size=rows)), TYPES[n])
            for n, v in COLUMNS.items()
        }
        | {"n": pa.nulls(rows)}
    )
    rules: list[CheckRule] = [RowCountRule(max=2)]
    for name in table.column_names:
        rules += [
            TypeRule(column=name, type="number"), NotNullRule(column=name), RangeRule(column=name, min=0, max=1), SetRule(column=name, allowed=["a", 1, True]),
            RegexRule(column=name, pattern="a+"), UniqueRule(columns=[name]), FreshnessRule(column=name, max_age="1d"),
            LabelRateRule(column=name, low=0, high=0.5, period="t", min_rows=1), LabelRateRule(column="b", low=0, high=0.5, by=name, min_rows=1, per="month"),
        ]  # fmt: skip
    findings = run_checks(table, rules, now=NOW)
    assert len(findings) == len(rules)
    for finding in findings:
        assert 0 <= finding.failing <= max(rows, 1)
        assert len(finding.sample) <= 10
        to_json(finding)


BERLIN = "Europe/Berlin"


def zoned(*times: str, zone: str = BERLIN, unit: str = "us") -> pa.Array:
    return pa.array([dt.datetime.fromisoformat(t) for t in times], pa.timestamp(unit, zone))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([dt.datetime.fromisoformat("2013-01-09T12:00:00+00:00")] * 3 + [dt.datetime.fromisoformat("2099-01-01T00:00:00+00:00")], pa.timestamp("ms", "UTC")),
        pa.array([dt.date(2013, 1, 9)] * 3 + [dt.date(2099, 1, 1)]),
        pa.array([1_357_700_000 * 10**9] * 3 + [2**63 - 1], pa.timestamp("ns")),
        pa.array([1_357_700_000] * 3 + [2**50], pa.timestamp("s")),
    ],
    ids=lambda c: str(c.type),
)  # fmt: skip
def test_a_row_of_the_future_makes_nothing_fresh(column: pa.Array) -> None:
    """Seen red: one row of 2099 among rows of 2020 passed any max_age."""
    fresh = one({"t": column}, FreshnessRule(column="t", max_age="2d"))
    assert (fresh.passed, fresh.failing, [r.row for r in fresh.sample]) == (False, 1, [3])
    assert "1 rows are in the future" in fresh.reason
    assert "older" not in fresh.reason
    stale = one({"t": column}, FreshnessRule(column="t", max_age="1h"))
    assert "older than 1h" in stale.reason
    assert stale.value is not None
    assert stale.value < NOW.timestamp()
    to_json(stale)


def test_clocks_and_zones_may_be_ahead_a_little() -> None:
    def passed(column: pa.Array, **options: Any) -> bool:
        return one({"t": column}, FreshnessRule(column="t", max_age="1d", **options)).passed

    assert passed(zoned("2013-01-10T00:04:00+00:00"))
    assert not passed(zoned("2013-01-10T00:06:00+00:00"))
    assert passed(pa.array([dt.date(2013, 1, 10)]))
    assert passed(pa.array([dt.datetime.fromisoformat("2013-01-10T13:00")], pa.timestamp("us")))
    assert not passed(pa.array([dt.datetime.fromisoformat("2013-01-10T15:00")], pa.timestamp("us")))
    assert not passed(zoned("2013-01-10T00:04:00+00:00"), tolerance="1m")
    assert passed(zoned("2013-01-12T00:00:00+00:00"), tolerance="3d")


def test_a_day_is_a_day_of_the_columns_zone() -> None:
    """Seen red: half past midnight of 2 June in Berlin was judged as 1 June."""
    rule = LabelRateRule(column="y", low=0, high=0.5, period="t", min_rows=1)
    at = zoned("2024-06-02T00:30:00+02:00", "2024-06-30T23:30:00+02:00", "2024-07-01T00:30:00+02:00")
    assert [g["period"] for g in one({"y": [1, 1, 1], "t": at}, rule).groups] == ["2024-06-02T00:00:00", "2024-06-30T00:00:00", "2024-07-01T00:00:00"]  # fmt: skip
    months = msgspec.structs.replace(rule, per="month")
    assert [(g["period"], g["rows"]) for g in one({"y": [1, 1, 1], "t": at}, months).groups] == [("2024-06-01T00:00:00", 2), ("2024-07-01T00:00:00", 1)]  # fmt: skip
    hours = msgspec.structs.replace(rule, per="hour")
    twice = zoned("2024-10-27T02:15:00+02:00", "2024-10-27T02:45:00+02:00", "2024-10-27T02:15:00+01:00")
    assert [(g["period"], g["rows"]) for g in one({"y": [1, 1, 1], "t": twice}, hours).groups] == [("2024-10-27T02:00:00+01:00", 1), ("2024-10-27T02:00:00+02:00", 2)]  # fmt: skip
    kathmandu = zoned("2024-06-02T00:05:00+05:45", "2024-06-02T00:50:00+05:45", zone="Asia/Kathmandu")
    assert [g["rows"] for g in one({"y": [1, 1], "t": kathmandu}, hours).groups] == [2]
    before = pa.array([dt.date(1969, 12, 31), dt.date(1970, 1, 1)])
    assert [g["period"] for g in one({"y": [1, 1], "t": before}, rule).groups] == ["1969-12-31T00:00:00", "1970-01-01T00:00:00"]  # fmt: skip


def test_rows_without_a_group_or_with_nan_are_groups_of_their_own() -> None:
    rule = LabelRateRule(column="y", low=0, high=0.5, by="g", min_rows=1)
    finding = one({"y": [1] * 5, "g": [NAN, NAN, None, -0.0, 0.0]}, rule)
    assert {str(g["group"]): g["rows"] for g in finding.groups} == {"nan": 2, "None": 1, "-0.0": 2}
    fine = one({"y": [1, 1], "g": pa.array([1, 2], pa.timestamp("ns", "UTC"))}, rule)
    assert [g["rows"] for g in fine.groups] == [1, 1]
    assert fine.groups[0]["group"].endswith("00.000000001")


@pytest.mark.parametrize(
    ("columns", "rule", "rows"),
    [
        ({"i": [2**53 + 1]}, RangeRule(column="i", max=2**53), [0]),
        ({"i": [2**53]}, RangeRule(column="i", min=2**53 + 1), [0]),
        ({"i": pa.array([2**64 - 1, 2**64 - 2], pa.uint64())}, RangeRule(column="i", max=2**64 - 2), [0]),
        ({"i": pa.array([5], pa.int8())}, RangeRule(column="i", max=4.5), [0]),
        ({"i": pa.array([5], pa.uint8())}, RangeRule(column="i", min=1e300), [0]),
        ({"d": [Decimal("100.00000000000000000001")]}, RangeRule(column="d", max=100), [0]),
        ({"d": pa.array([Decimal(10**45), None], pa.decimal256(60, 2))}, RangeRule(column="d", max=1), [0]),
        (
            {"d": pa.array([Decimal(10**45), Decimal(1)], pa.decimal256(60, 2))},
            SetRule(column="d", allowed=[1]),
            [0],
        ),
        ({"d": pa.array([Decimal(10**45)] * 2, pa.decimal256(60, 2))}, UniqueRule(columns=["d"]), [0, 1]),
        ({"i": [2**53 + 1]}, SetRule(column="i", allowed=[float(2**53)]), [0]),
        ({"f": [float(2**53)]}, SetRule(column="f", allowed=[2**53 + 1]), [0]),
        ({"f": pa.array([float("inf")], pa.float32())}, SetRule(column="f", allowed=[1e300, 2.0]), [0]),
        ({"f": [0.0, -0.0, 1.0]}, UniqueRule(columns=["f"]), [0, 1]),
        ({"f": [NAN, NAN, 1.0]}, UniqueRule(columns=["f"]), [0, 1]),
    ],
)
def test_values_are_compared_exactly(columns: dict[str, Any], rule: CheckRule, rows: list[int]) -> None:
    """Seen red: bounds became floats, and decimals of more than 38 digits ended in the engine's own exception,
    and 1e300 was the infinity of a float32."""
    finding = one(columns, rule)
    assert not finding.passed
    assert [r.row for r in finding.sample] == rows


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"t": pa.array([1, 2], pa.timestamp("ns", "UTC"))}, UniqueRule(columns=["t"])),
        ({"t": pa.array([1, 2], pa.time64("ns"))}, UniqueRule(columns=["t"])),
        ({"t": pa.array([1, 2], pa.duration("ns"))}, UniqueRule(columns=["t"])),
        ({"f": pa.array([0.1, 2.5], pa.float32())}, SetRule(column="f", allowed=[0.1, 2.5])),
        ({"d": [Decimal("0.10"), None]}, SetRule(column="d", allowed=[0.1])),
        ({"d": [Decimal("0.10"), None]}, RangeRule(column="d", min=0.1, max=0.1)),
        ({"i": [5, None]}, RangeRule(column="i", min=4.5, max=5.5)),
        ({"i": [5, None]}, RangeRule(column="i", min=-1e300, max=float("inf"))),
    ],
)
def test_values_that_differ_little_or_only_in_their_type_pass(
    columns: dict[str, Any], rule: CheckRule
) -> None:
    """Seen red: the engine cuts nanoseconds, and 0.1 is not the float32 of 0.1."""
    assert one(columns, rule).passed


def test_values_that_python_cannot_hold_are_shown_all_the_same() -> None:
    finding = one({"x": [NAN], "t": pa.array([2**62], pa.timestamp("us")), "n": pa.array([1], pa.timestamp("ns"))}, NotNullRule(column="x"))  # fmt: skip
    assert isinstance(finding.sample[0].values["t"], str)
    to_json(finding)


@pytest.mark.parametrize(
    ("values", "positive", "rate"),
    [([1.0, 2.0] * 20, 1, 0.5), ([1, 2] * 20, 1.0, 0.5), (["1", "2"] * 20, 1, 0.5), ([True, False] * 20, 1, 0.5), ([1, 0] * 20, True, 0.5),
     ([1.0, 0.0] * 20, True, 0.5), ([0, 0] * 20, True, 0.0), (["no"] * 40, "yes", 0.0)],
)  # fmt: skip
def test_label_rate_matches_the_positive_by_value(values: list[Any], positive: Any, rate: float) -> None:
    finding = one({"y": values}, LabelRateRule(column="y", low=0.0, high=1.0, positive=positive))
    assert (finding.passed, finding.value) == (True, rate)


@pytest.mark.parametrize(
    ("values", "positive"), [([1, 2] * 20, True), (["no", "yes"] * 20, True), ([1, 2] * 20, "one")]
)
def test_label_rate_refuses_a_positive_that_is_no_class(values: list[Any], positive: Any) -> None:
    """Seen red against 0.1 for the classes 1 and 2: true was taken for 1."""
    finding = one({"y": values}, LabelRateRule(column="y", low=0.0, high=1.0, positive=positive))
    assert not finding.passed
    assert f"never {positive!r}" in finding.reason


def test_numbers_and_times_beyond_an_engine_or_a_calendar_are_findings() -> None:
    """Seen red: the engine's own exception for a number of more than 128 bits, and OverflowError for a class beyond the year 9999."""
    held = one({"i": pa.array([1, 2, None], pa.int8())}, SetRule(column="i", allowed=[1, 300, 1e300]))
    assert [r.row for r in held.sample] == [1]
    far = one(
        {"t": pa.array([2**62], pa.timestamp("us"))}, LabelRateRule(column="t", low=0, high=1, positive=1)
    )
    assert "never 1" in far.reason
