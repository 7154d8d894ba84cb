"""The same values in another type or another rounding are the same values; other values are not."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.data.profile import ProfileBuilder, merge
from mainspring.monitoring.bins import Reference
from mainspring.monitoring.drift import drift_report
from mainspring.monitoring.quality import issues
from mainspring.records.monitoring import ColumnDrift, MonitorPolicy, Verdict
from mainspring.records.profile import Profile

POLICY = MonitorPolicy()
N = 600
AT = np.arange(N)
TENTHS = np.round((AT % 7 + 1) * 0.1, 1)
DAYS = [dt.date(2024, 1, 1) + dt.timedelta(days=int(i) % 20) for i in AT]


def profile(values: Any) -> Profile:
    data = pa.table({"x": values}) if isinstance(values, pa.Array) else {"x": values}
    return ProfileBuilder().add(data).build()


def column(reference: Any, window: Any, types: dict[str, str] | None = None) -> ColumnDrift:
    binned = Reference(profile(reference), name="r", bins=10, types=types)
    report = drift_report(binned, [binned.count([profile(window)])], rows=N, policy=POLICY)
    return report.columns[0]


def warnings(reference: Any, window: Any) -> set[str]:
    binned = Reference(profile(reference), name="r", bins=10)
    return {i.code for i in issues(profile(window), binned, POLICY) if i.severity == "warning"}


SAME: dict[str, tuple[Any, Any]] = {
    "float32 of tenths": (TENTHS, TENTHS.astype(np.float32)),
    "tenths against their float32": (TENTHS.astype(np.float32).astype(float), TENTHS),
    "i * 0.1": (TENTHS, (AT % 7 + 1) * 0.1),
    "float32 arithmetic": (TENTHS, (AT % 7 + 1).astype(np.float32) * np.float32(0.1)),
    "constant 0.3 and 0.1 + 0.2": (np.full(N, 0.3), np.full(N, 0.1 + 0.2)),
    "constant and its float32": (np.full(N, 0.3), np.full(N, np.float32(0.3))),
    "a reference with both roundings": (np.where(AT % 2, 0.3, 0.1 + 0.2), np.full(N, 0.3)),
    "minus zero": (np.where(AT % 2, 0.0, 1.0), np.where(AT % 2, -0.0, 1.0)),
    "noise around zero": (np.round((AT % 5 - 2) * 0.1, 1), (AT % 5) * 0.1 - 0.2),
    "int and float": ([int(i) % 5 for i in AT], [float(i % 5) for i in AT]),
    "1e16 as int and float": ([10**16 + 4 * (int(i) % 3) for i in AT], [1e16 + 4.0 * (i % 3) for i in AT]),
    "float32 of large whole numbers": (np.full(N, 123_456_789.0), np.full(N, np.float32(123_456_789))),
    "bool and 0/1": (AT % 2 == 0, (AT % 2 == 0).astype(float)),
    "0/1 and bool": ((AT % 2).astype(np.int64), AT % 2 == 1),
    "bool and text": (AT % 2 == 0, ["True" if i % 2 == 0 else "false" for i in AT]),
    "text of bool and bool": (["True" if i % 2 == 0 else "False" for i in AT], AT % 2 == 0),
    "bool and digits as text": (AT % 2 == 0, ["1" if i % 2 == 0 else "0" for i in AT]),
    "digits as text and ints": ([str(i % 5) for i in AT], [int(i) % 5 for i in AT]),
    "ints and digits as text": ([int(i) % 5 for i in AT], [str(i % 5) for i in AT]),
    "text with .0 and ints": ([f"{i % 5}.0" for i in AT], [int(i) % 5 for i in AT]),
    "padded digits and ints": ([f" {i % 5} " for i in AT], [int(i) % 5 for i in AT]),
    "many numbers as text": ([repr(float(i / 7)) for i in AT], AT / 7),
    "many numbers, as text in requests": (AT / 7, [repr(float(i / 7)) for i in AT]),
    "decimals": (TENTHS, [Decimal(str(v)) for v in TENTHS]),
    "numpy scalars": (TENTHS.tolist(), [np.float32(v) for v in TENTHS]),
    "dates and datetimes": (DAYS, [dt.datetime(d.year, d.month, d.day, tzinfo=dt.UTC) for d in DAYS]),
    "dates and ISO text": (DAYS, [d.isoformat() for d in DAYS]),
    "dates and numpy times": (pa.array(DAYS), np.array(DAYS, dtype="datetime64[ns]")),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_the_same_values_in_another_form_are_no_drift(case: str) -> None:
    """Seen red on 0.1 in all cases but three (ints against floats, 1e16, minus zero)."""
    found = column(*SAME[case])
    assert found.verdict is Verdict.OK, found
    assert found.psi == pytest.approx(0.0, abs=0.02)
    assert warnings(*SAME[case]) == set()


OTHER: dict[str, tuple[Any, Any]] = {
    "another constant": (np.full(N, 0.3), np.full(N, 0.31)),
    "a close constant": (np.full(N, 0.3), np.full(N, 0.30001)),
    "whole numbers far from zero": (np.full(N, 1.7e9), np.full(N, 1.7e9 + 60)),
    "neighbouring large ints": ([2**40] * N, [2**40 + 1] * N),
    "times a minute apart": (np.where(AT % 2, 1.7e9, 1.7e9 + 60), np.full(N, 1.7e9 + 60)),
    "leading zeros": ([f"0{i % 5}" for i in AT], [int(i) % 5 for i in AT]),
    "words and numbers": ([f"w{i % 5}" for i in AT], [int(i) % 5 for i in AT]),
    "numbers and words": ([int(i) % 5 for i in AT], [f"w{i % 5}" for i in AT]),
    "text of numbers, other numbers": ([str(i % 5) for i in AT], [int(i) % 5 + 2 for i in AT]),
    "truth turned": (AT % 10 == 0, (AT % 10 != 0).astype(float)),
    "truth and other numbers": (AT % 2 == 0, (AT % 5).astype(float)),
    "text codes, other spelling": ([f"{i % 5}" for i in AT], [f"{i % 5}.0" for i in AT]),
    "padded words": ([f"a{i % 5}" for i in AT], [f" a{i % 5}" for i in AT]),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_other_values_are_drift(case: str) -> None:
    assert column(*OTHER[case]).verdict is Verdict.DRIFT


@pytest.mark.parametrize("case", ["leading zeros", "words and numbers", "numbers and words"])
def test_values_of_another_type_are_a_finding(case: str) -> None:
    assert "type" in warnings(*OTHER[case])


def test_another_type_that_reads_as_the_first_is_told_without_alarm() -> None:
    binned = Reference(profile([int(i) % 5 for i in AT]), name="r", bins=10)
    found = issues(profile([str(i % 5) for i in AT]), binned, POLICY)
    assert [(i.code, i.severity) for i in found] == [("type", "info")]
    assert "read as that" in found[0].detail


def test_null_in_requests_is_what_nan_was_in_training() -> None:
    """Committed from an array, gaps are NaN; JSON has only null. Seen red: "25% of the values are null (reference 0.0%)"."""
    gaps = AT % 4 == 0
    values = np.where(gaps, np.nan, AT.astype(float))
    requests = [None if gap else float(i) for i, gap in zip(AT, gaps, strict=True)]
    assert not warnings(values, requests)
    assert warnings(AT.astype(float), requests) == {"nulls"}
    assert warnings(np.where(AT % 40 == 0, np.nan, values), [None if i % 2 else float(i) for i in AT]) == {
        "nulls"
    }


def test_text_in_part_numbers_counts_what_does_not_read_as_invalid() -> None:
    mixed = ["n/a" if i % 4 == 0 else str(i % 5) for i in AT]
    assert {"invalid", "type"} <= warnings([int(i) % 5 for i in AT], mixed)


def test_the_type_of_the_signature_decides_how_digits_are_compared() -> None:
    """Declared a number, codes as text are numbers even between two texts; else another spelling is another category."""
    codes, spelled = OTHER["text codes, other spelling"]
    assert column(codes, spelled, {"x": "float64"}).verdict is Verdict.OK
    assert column(codes, spelled, {"x": "string"}).verdict is Verdict.DRIFT


def test_a_window_of_mixed_types_is_the_same_however_it_came_in() -> None:
    """Requests of two clients, one of which sends digits as text: in one batch, in two, or merged from two profiles."""
    numbers, text = [int(i) % 5 for i in AT], [str(i % 5) for i in AT]
    reference = Reference(profile(numbers), name="r", bins=10)
    ways = [
        ProfileBuilder().add({"x": numbers}).add({"x": text}).build(),
        ProfileBuilder().add({"x": text}).add({"x": numbers}).build(),
        merge(profile(numbers), profile(text)),
        merge(profile(text), profile(numbers)),
        ProfileBuilder().add({"x": [*numbers, *text]}).build(),
    ]
    for window in ways:
        found = drift_report(reference, [reference.count([window])], rows=2 * N, policy=POLICY).columns[0]
        assert (found.verdict, found.n) == (Verdict.OK, 2 * N)
        assert found.psi == pytest.approx(0.0, abs=0.01)


def test_numbers_as_text_beyond_what_a_profile_keeps_by_name_are_compared_as_numbers() -> None:
    rng = np.random.default_rng(0)
    text = [repr(float(v)) for v in rng.normal(size=5_000)]
    assert column(text, rng.normal(size=2_000)).verdict is Verdict.OK
    assert column(rng.normal(size=5_000), text).verdict is Verdict.OK
    assert column(text, rng.normal(1.0, 1.0, size=2_000)).verdict is Verdict.DRIFT


def test_a_merged_sketch_is_read_with_its_weights() -> None:
    """The library's iterator gives every retained value of a merged sketch the weight 1. Seen red with its weights."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=20_000)
    whole: Profile | None = None
    for part in np.split(values, 8):
        whole = profile(part) if whole is None else merge(whole, profile(part))
    reference = Reference(profile(rng.normal(size=1_000)), name="r", bins=10)
    assert whole is not None
    counts = reference.columns["x"].count(whole.columns[0]).numeric
    assert counts is not None
    assert counts.sum() == 20_000
    edges = np.array(reference.columns["x"].edges)
    true = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    assert np.abs(counts - true).max() < 0.01 * 20_000


def test_a_rare_value_may_be_absent_from_a_window() -> None:
    """Seen red on 0.1: a window of zeros from a column with 0.1 % others was "constant"."""
    mostly = np.where(np.arange(5_000) % 1_000 == 0, 1.0, 0.0)
    assert warnings(mostly, np.zeros(200)) == set()
    assert "constant" in warnings(np.arange(5_000.0), np.full(200, 17.0))
