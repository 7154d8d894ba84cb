"""Splits, weights and searches of tables with times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from mainspring.errors import InvalidInput
from mainspring.training.search import Real
from mainspring.training.splits import DAY_US
from mainspring.training.timed import read_micros, search_by_time, split_by_time, take_evenly, weigh_by_age

START = datetime(2024, 3, 1, tzinfo=UTC)


def rows(days: int = 40, per_day: int = 30) -> pa.Table:
    """A number ``x`` that says much of ``y``; a label arrives two days after its event."""
    rng = np.random.default_rng(2)
    moments = [START + timedelta(days=d, minutes=m) for d in range(days) for m in range(per_day)]
    x = rng.normal(size=len(moments))
    return pa.table(
        {
            "event_time": pa.array(moments, pa.timestamp("us", "UTC")),
            "label_arrived_at": pa.array([m + timedelta(days=2) for m in moments], pa.timestamp("us", "UTC")),
            "x": x,
            "y": x + rng.normal(size=len(x)) > 0,
        }
    )


def test_no_row_counts_whose_label_came_after_the_moment() -> None:
    """Nor does a training row whose label came after the hold-out began."""
    until = START + timedelta(days=30)
    train, holdout = split_by_time(rows(), until=until.isoformat(), days=5)
    assert max(holdout["label_arrived_at"].to_pylist()) <= until
    assert max(train["label_arrived_at"].to_pylist()) <= min(holdout["event_time"].to_pylist())
    ends = holdout["event_time"].to_pylist()
    assert max(ends) - min(ends) <= timedelta(days=5)
    with pytest.raises(InvalidInput, match="no row has a label"):
        split_by_time(rows(), until=START.isoformat(), days=5)


def test_a_row_that_is_older_by_the_half_life_weighs_half() -> None:
    table = rows()
    weights = weigh_by_age(table, 10)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] / weights[10 * 30] == pytest.approx(0.5)
    assert weigh_by_age(table, 0) is None


def test_rows_are_drawn_evenly_and_stay_in_order() -> None:
    drawn = read_micros(take_evenly(rows(), 100, seed=1))
    assert len(drawn) == 100
    assert (np.diff(drawn) >= 0).all()
    assert take_evenly(rows(), 5000, seed=1).equals(rows())


def test_the_search_goes_forward_in_time_and_selects_the_better_family() -> None:
    seen: list[tuple[int, int]] = []
    logged: dict[str, float] = {}

    def fit(name: str, params: Mapping[str, Any], part: pa.Table) -> Any:
        seen.append((part.num_rows, int(read_micros(part).max() // DAY_US)))
        model = DummyClassifier() if name == "dummy" else LogisticRegression(**params)
        return model.fit(np.column_stack([part["x"].to_numpy()]), part["y"].to_numpy())

    class Columns:
        """Reads the inputs of a table as an array."""

        def __init__(self, model: Any) -> None:
            self.model = model

        def predict_proba(self, part: pa.Table) -> Any:
            assert part.column_names == ["x"]
            return self.model.predict_proba(np.column_stack([part["x"].to_numpy()]))

    families: Any = {"dummy": ({}, {}), "linear": ({"C": Real(0.1, 10, log=True)}, {"C": 1.0})}
    found = search_by_time(
        families, lambda n, p, r: Columns(fit(n, p, r)), rows(), inputs=["x"], target="y", trials=4, seed=0, log=logged.__setitem__
    )  # fmt: skip
    assert found.family == "linear"
    assert set(logged) == {f"trial_{i}_{n}_log_loss" for i, n in enumerate(["dummy", "linear"] * 2)}
    last = int(read_micros(rows()).max() // DAY_US)
    assert (
        max(day for _, day in seen) <= last - 5 - 2
    )  # before the last fold, with the labels that had arrived by then
