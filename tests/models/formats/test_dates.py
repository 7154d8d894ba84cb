"""Dates as inputs: read in one way everywhere, and taken apart inside of the model."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from mainspring.errors import InvalidInput
from mainspring.models import formats
from mainspring.models.formats.columns import instants
from mainspring.models.formats.dates import PARTS, DateParts, compute_parts
from mainspring.records.instants import parse_instant
from mainspring.serving.codec import RowCodec

EDGES = [
    "1700-01-01", "1900-02-28T23:59:59.999999", "1969-12-31T23:59:59.999999", "1970-01-01", "2000-02-29", "2024-02-29T12:00:00",
    "2023-12-31T23:59:59.999999", "2100-02-28T23:59:59.999999", "2100-03-01", "2199-12-31T23:59:59.999999",
]  # fmt: skip


def _times() -> Any:
    rng = np.random.default_rng(0)
    low, high = (int(np.datetime64(t, "us").astype(int)) for t in ("1700-01-01", "2199-12-31"))
    drawn = rng.integers(low, high, 20_000)
    ends = (rng.integers(low // 86_400_000_000, high // 86_400_000_000, 5_000) + 1) * 86_400_000_000 - 1
    edges = np.array(EDGES, dtype="datetime64[us]").astype(np.int64)
    return np.concatenate([drawn, ends, edges]).astype("datetime64[us]")


def test_parts_are_those_of_the_calendar() -> None:
    """Against Arrow's calendar, the last microsecond of a day among others."""
    times = _times()
    arrow = pa.array(times)
    parts = compute_parts(instants("t", times, len(times)))
    expected = {"year": pc.year, "month": pc.month, "day": pc.day, "weekday": pc.day_of_week, "hour": pc.hour}
    for part, function in expected.items():
        np.testing.assert_array_equal(parts[part], function(arrow).to_numpy(), err_msg=part)
    np.testing.assert_allclose(parts["days"], times.astype(np.int64) / 86_400e6)


def test_one_way_to_read_a_date() -> None:
    want = [parse_instant("2026-02-03T15:30:00Z")] * 7
    given = [
        "2026-02-03T15:30:00Z", "2026-02-03 15:30", "2026-02-03T16:30:00+01:00", datetime(2026, 2, 3, 15, 30),  # noqa: DTZ001
        datetime(2026, 2, 3, 15, 30, tzinfo=UTC), pd.Timestamp("2026-02-03 15:30"), pd.Timestamp("2026-02-03 10:30", tz="America/New_York"),
    ]  # fmt: skip
    np.testing.assert_array_equal(instants("t", given, 7), instants("t", want, 7))
    assert parse_instant(date(2026, 2, 3)) == datetime(2026, 2, 3, tzinfo=UTC)
    series = [
        pd.Series(pd.to_datetime(["2026-02-03 15:30", None])),
        pd.Series(pd.to_datetime(["2026-02-03 15:30", None]))
        .dt.tz_localize("UTC")
        .dt.tz_convert("Asia/Tokyo"),
        np.array(["2026-02-03T15:30", "NaT"], dtype="datetime64[s]"),
        pa.array([want[0], None], pa.timestamp("ms", "UTC")),
        ["2026-02-03T15:30", None],
    ]
    for values in series:
        read = instants("t", values, 2)
        assert read[0] == instants("t", want[:1], 1)[0]
        assert np.isnan(read[1])


@pytest.mark.parametrize(
    "value", ["soon", "", "2026-13-01", 1_700_000_000, 3.5, True, "1066-10-14", "x" * 1000, "9999-12-31", []]
)
def test_what_is_no_date_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInput, match="column 'when'"):
        instants("when", [value], 1)


def _frame(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    when = pd.Series(
        pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700 * 24 * 3600, rows), unit="s")
    )
    when[::17] = pd.NaT
    return pd.DataFrame({"when": when, "size": rng.normal(size=rows)})


@pytest.mark.parametrize("form", ["onnx", "skops"])
@pytest.mark.parametrize("parts", [["days", "month", "weekday", "hour"], list(PARTS)])
def test_a_model_of_dates_is_stored_exactly(form: str, parts: list[str], tmp_path: Path) -> None:
    frame = _frame()
    y = (frame.when.dt.day_of_week.fillna(0) >= 5).map({True: "weekend", False: "week"})
    dates = make_pipeline(DateParts(parts), SimpleImputer(add_indicator=True))
    estimator = make_pipeline(
        make_column_transformer((dates, ["when"]), remainder="passthrough"),
        RandomForestClassifier(20, random_state=0),
    ).fit(frame, y)
    package = formats.save(estimator, tmp_path / "p", sample=frame[:50], training=frame, format=form)
    assert [(c.name, c.type, c.nullable) for c in package.signature.inputs] == [
        ("when", "datetime", True),
        ("size", "float64", False),
    ]
    model = formats.load(tmp_path / "p")
    fresh = _frame(3000)
    fresh["when"] = pd.Series(np.random.default_rng(2).permutation(_times())[:3000])
    assert model.predict(fresh).tolist() == estimator.predict(fresh).tolist()
    np.testing.assert_allclose(model.predict_proba(fresh), estimator.predict_proba(fresh), atol=1e-12)
    as_text = [{"when": "2026-11-28T10:00:00Z", "size": 0.0}, {"when": None, "size": 0.0}, {"size": 0.0}]
    assert model.predict(as_text).tolist()[:1] == ["weekend"]


@pytest.mark.parametrize(
    "values",
    [
        np.array(["300000-01-01"], dtype="datetime64[s]"),
        pa.array([9 * 10**12], pa.timestamp("s")),
        np.array(["2201-01-01"], dtype="datetime64[D]"),
        pd.Series(["1699-12-31"]).astype("datetime64[s]"),
    ],
)
def test_a_time_of_another_age_is_refused_in_a_table_as_in_a_text(values: Any) -> None:
    """Seen red: the first became a time before 1970, the second a number that float64 does not hold."""
    with pytest.raises(InvalidInput, match="1700 to 2200"):
        instants("d", values, 1)


def test_times_before_1970_and_with_zones_are_the_same_in_every_table() -> None:
    """Seen red: Arrow rounded nanoseconds before 1970 up, NumPy down; an index of pandas with a zone had no answer."""
    before = np.array([-1500], dtype="datetime64[ns]")
    for values in (
        before,
        pa.array(before),
        pa.chunked_array([before]),
        pd.Series(before),
        pd.Series(before, dtype=object),
    ):
        assert instants("d", values, 1).tolist() == [-2.0]
    zoned = pd.date_range("2020-01-01", periods=1, tz="Europe/Berlin")
    assert instants("d", zoned, 1).tolist() == instants("d", pd.Series(zoned), 1).tolist() == [1577833200e6]


def test_names_of_parts() -> None:
    fitted = DateParts(["month", "hour"]).fit(_frame()[["when"]])
    assert fitted.get_feature_names_out().tolist() == ["when_month", "when_hour"]
    assert fitted.transform(_frame()[["when"]]).shape == (400, 2)
    with pytest.raises(InvalidInput, match="weekday"):
        DateParts(["weekdy"]).fit(_frame()[["when"]])


def test_a_request_has_dates_as_text() -> None:
    signature = formats.infer_signature(_frame(), task="binary")
    codec = RowCodec(signature, max_rows=10, max_text=100)
    call = codec.decode(b'{"rows":[{"when":"2026-02-03","size":1.0},{"when":null,"size":2.0}]}')
    assert list(call.columns["when"]) == [datetime(2026, 2, 3, tzinfo=UTC), None]
    with pytest.raises(InvalidInput, match="date or time"):
        codec.decode(b'{"rows":[{"when":"yesterday","size":1.0}]}')
    with pytest.raises(InvalidInput, match="signature"):
        codec.decode(b'{"rows":[{"when":1700000000,"size":1.0}]}')
