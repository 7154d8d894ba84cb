"""The steps are plain functions: test them by calling them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.csv
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rent_train", ROOT / "pipelines" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def offers() -> pa.Table:
    return pyarrow.csv.read_csv(ROOT / "data" / "rents.csv")


def test_the_file_has_what_the_model_needs(train: ModuleType, offers: pa.Table) -> None:
    rows = train.clean(offers)
    assert rows.num_rows > 100
    assert {*train.INPUTS, train.LABEL} <= set(rows.column_names)


def test_newer_offers_do_not_exist_yet(train: ModuleType, offers: pa.Table) -> None:
    rows = train.clean(offers, "2024-01-02T00:00:00+00:00")
    assert 0 < rows.num_rows < 10


def test_offers_without_a_rent_are_dropped(train: ModuleType) -> None:
    rows = pa.table({"event_time": ["a", "b"], "rent": [900.0, None]})
    assert train.clean(rows).num_rows == 1


def test_the_newest_rows_judge(train: ModuleType) -> None:
    rows, judging = train.split(pa.table({"event_time": list(range(10))}), 3)
    assert judging["event_time"].to_pylist() == [7, 8, 9]
    assert rows.num_rows == 7


def test_the_fitted_model_comes_with_its_rows(train: ModuleType, offers: pa.Table) -> None:
    rows, judging = train.split(train.clean(offers), 100)
    fitted = train.fit(rows, judging, "rent")
    assert fitted.holdout.num_rows == 100
    assert (
        abs(fitted.estimator.predict(judging.select(train.INPUTS)) - judging["rent"].to_numpy()).mean() < 120
    )
