"""The steps are plain functions: test them by calling them."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def train() -> ModuleType:
    place = Path(__file__).parents[1] / "pipelines" / "train.py"
    spec = importlib.util.spec_from_file_location("flights_train", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flights(days: int, per_day: int = 20) -> pa.Table:
    start = datetime(2013, 1, 1, 12, tzinfo=UTC)
    rows = [
        {
            "flight_id": day * per_day + n,
            "event_time": start + timedelta(days=day, minutes=n),
            "label_arrived_at": start + timedelta(days=day + 1, minutes=n),
            "arr_delay": None if n == 0 else (60.0 if n % 4 == 0 else -5.0),
            "hour": 12.0 + n / 60,
            "distance": 500.0 + n,
            "temp": None if n == 1 else 40.1 + day,
            "dewp": 30.0 + n,
            "humid": 60.0 + n,
            "wind_speed": 10.357019999999999 + n,
            "precip": 0.1 * (n % 3),
            "pressure": 1012.0 + n,
            "visib": 10.0 - n % 5,
            "carrier": "UA" if n % 2 else "AA",
            "origin": "JFK",
            "dest": "LAX",
            "weekday": str(day % 7),
        }
        for day in range(days)
        for n in range(per_day)
    ]
    schema = pa.Table.from_pylist(rows).schema
    times = ("event_time", "label_arrived_at")
    fields = [pa.field(f.name, pa.timestamp("us", "UTC") if f.name in times else f.type) for f in schema]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def test_nothing_that_arrived_after_the_moment_is_collected(train: ModuleType, tmp_path: Path) -> None:
    pq.write_table(_flights(6), tmp_path / "a.parquet")
    rows = train.collect(str(tmp_path), "2013-01-04T00:00:00+00:00")
    assert 0 < rows.num_rows < 6 * 20
    assert max(rows["label_arrived_at"].to_pylist()) <= datetime(2013, 1, 4, tzinfo=UTC)


def test_a_corrected_delivery_replaces_the_first(train: ModuleType, tmp_path: Path) -> None:
    first = _flights(3)
    late = first.slice(2, 1).to_pylist()[0] | {
        "arr_delay": 99.0,
        "label_arrived_at": datetime(2013, 2, 1, tzinfo=UTC),
    }
    pq.write_table(first, tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([late], schema=first.schema), tmp_path / "b.parquet")
    for until, delay in (("2013-01-20T00:00:00+00:00", -5.0), ("2013-02-02T00:00:00+00:00", 99.0)):
        rows = train.collect(str(tmp_path), until).to_pylist()
        assert len(rows) == 60
        assert [r["arr_delay"] for r in rows if r["flight_id"] == 2] == [delay]


def test_what_is_known_only_after_departure_does_not_reach_the_model(train: ModuleType) -> None:
    clean = train.clean(_flights(3))
    assert "arr_delay" not in clean.column_names
    assert clean.num_rows == 3 * 19  # the flight that never arrived has no label
    assert set(train.NUMBERS + train.TEXTS) <= set(clean.column_names)


def test_the_holdout_is_the_newest_and_never_trained_on(train: ModuleType) -> None:
    rows, holdout = train.split(train.clean(_flights(20)), "2013-01-21T23:00:00+00:00", 5)
    assert max(rows["label_arrived_at"].to_pylist()) <= min(holdout["event_time"].to_pylist())
    assert not set(rows["flight_id"].to_pylist()) & set(holdout["flight_id"].to_pylist())


@pytest.mark.parametrize("family", ["logistic", "curves", "forest", "boosting"])
def test_every_family_fits_and_answers_probabilities(train: ModuleType, family: str) -> None:
    rows = train.clean(_flights(30))
    model = train.fit_family(family, train.FAMILIES[family][1], rows, half_life=60, seed=1)
    scores = model.predict_proba(rows.select(train.NUMBERS + train.TEXTS))[:, 1]
    assert scores.min() >= 0
    assert scores.max() <= 1
