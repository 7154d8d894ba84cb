"""The task, the kinds of columns, and what is left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.automl.problem import read_problem, read_target

N = 120
RNG = np.random.default_rng(3)
NUMBER = RNG.normal(size=N)
START = datetime(2024, 1, 1, tzinfo=UTC)


def table(**columns: Any) -> pa.Table:
    return pa.table({"x": NUMBER, **columns})


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([i % 2 == 0 for i in range(N)], Task.BINARY),
        (["yes" if i % 3 else "no" for i in range(N)], Task.BINARY),
        ([i % 2 * 5 for i in range(N)], Task.BINARY),
        (["abc"[i % 3] for i in range(N)], Task.MULTICLASS),
        ([i % 5 for i in range(N)], Task.MULTICLASS),
        ([float(i % 5) for i in range(N)], Task.MULTICLASS),
        (list(range(N)), Task.REGRESSION),
        ([i % 5 + 0.5 for i in range(N)], Task.REGRESSION),
    ],
)
def test_the_task_follows_from_the_target(values: list[Any], task: Task) -> None:
    found = read_problem(table(y=values), target="y")
    assert found.task is task
    assert any(task.value in sentence for sentence in found.assumed)


def test_the_task_may_be_given() -> None:
    values = [i % 5 for i in range(N)]
    assert read_problem(table(y=values), target="y", task="regression").task is Task.REGRESSION
    with pytest.raises(InvalidInput, match="no such task"):
        read_problem(table(y=values), target="y", task="regresion")
    with pytest.raises(InvalidInput, match="needs numbers"):
        read_problem(table(y=["a", "b", "c"] * 40), target="y", task="regression")


def test_rows_without_a_target_are_dropped_and_whole_numbers_stay_whole() -> None:
    """What pandas makes of whole numbers with gaps are floats with NaN."""
    values = [float("nan") if i < 20 else float(i % 3) for i in range(N)]
    found = read_problem(table(y=values), target="y")
    assert found.table.num_rows == 100
    assert read_target(found.table, "y", found.task).dtype == np.int64
    assert "20 rows without 'y' are left out" in found.assumed


def test_columns_that_say_nothing_are_left_out_and_named() -> None:
    found = read_problem(
        table(
            y=[i % 2 for i in range(N)],
            row=list(range(1000, 1000 + N)),
            customer_id=[f"c{i // 2}" for i in range(N)],
            note=[f"text {i}" for i in range(N)],
            same=[7] * N,
            empty=pa.nulls(N, pa.float64()),
            endless=[float("inf")] * 3 + [1.0] * (N - 3),
            several=[[i] for i in range(N)],
            plan=["free", "paid", None] * 40,
        ),
        target="y",
    )
    assert found.numbers == ["x"]
    assert found.texts == ["plan"]
    assert set(found.left_out) == {"row", "customer_id", "note", "same", "empty", "endless", "several"}
    assert "numbers the rows" in found.left_out["row"]


def test_a_left_out_column_is_kept_on_request() -> None:
    found = read_problem(table(y=[i % 2 for i in range(N)], row=list(range(N))), target="y", keep=["row"])
    assert found.numbers == ["x", "row"]


def test_of_dates_the_parts_that_vary_are_used() -> None:
    times = [START + timedelta(hours=7 * i) for i in range(N)]
    found = read_problem(
        table(y=[i % 2 for i in range(N)], seen=pa.array(times, pa.timestamp("us", "UTC"))), target="y"
    )
    assert found.numbers == ["x"]
    assert found.dates == {"seen": ["days", "month", "weekday", "hour"]}
    assert found.inputs == ["x", "seen"]
    assert "'seen' is a date; used of it: days, month, weekday, hour" in found.assumed
    days = pa.array([t.date() for t in times])
    found = read_problem(table(y=[i % 2 for i in range(N)], seen=days), target="y")
    assert found.dates == {"seen": ["days", "month", "weekday"]}, "a day has no hour"


def test_the_time_column_gives_no_days_and_orders_the_rows() -> None:
    """Rows to come lie beyond all days of training. Seen red with the days of the time column left in."""
    times = [(START + timedelta(hours=7 * i)).strftime("%Y-%m-%dT%H:%M:%S") for i in range(N)][::-1]
    found = read_problem(table(y=[i % 2 for i in range(N)], at=times), target="y", time="at")
    assert found.dates == {"at": ["month", "weekday", "hour"]}
    assert found.table["at"].to_pylist() == sorted(found.table["at"].to_pylist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "z"}, "no such column"),
        ({"time": "x", "group": "g"}, "not by both"),
        ({"target": "g", "task": "binary"}, "a binary target has 2 values"),
        ({"target": "rare"}, "at least 5 rows"),
        ({"target": "one"}, "one value only.*Give rows of every outcome"),
        ({"target": "when"}, "a target is a number"),
        ({"time": "words"}, "not a time"),
        ({"time": "gaps"}, "have no time"),
    ],
)
def test_what_cannot_be_right_is_refused(change: dict[str, Any], message: str) -> None:
    rows = table(
        y=[i % 2 for i in range(N)],
        g=["abc"[i % 3] for i in range(N)],
        rare=["a"] * (N - 2) + ["b"] * 2,
        one=[1] * N,
        when=[START] * N,
        words=["soon", "late"] * (N // 2),
        gaps=[None, 1.0] * (N // 2),
    )
    with pytest.raises(InvalidInput, match=message):
        read_problem(rows, **({"target": "y"} | change))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidInput, match="too few rows"):
        read_problem(pa.table({"x": [1.0, 2.0] * 10, "y": [0, 1] * 10}), target="y")


@pytest.mark.parametrize(
    ("times", "unlike"),
    [
        (["2025-01-01", "2025-01-02T10:00:00", "03.01.2025", "2025-01-04"], "03.01.2025"),
        (["soon", "2025-01-02"], "soon"),
    ],
)
def test_the_value_that_is_no_time_is_named(times: list[str], unlike: str) -> None:
    """Seen red with the first value named: 'not a time: 2025-01-01'."""
    rows = pa.table({"when": times * 30, "x": range(len(times) * 30), "y": [0.5, 1.5] * (len(times) * 15)})
    with pytest.raises(InvalidInput, match="several formats") as refused:
        read_problem(rows, target="y", time="when")
    assert refused.value.value == unlike


def test_nothing_is_said_of_a_date_that_is_left_out() -> None:
    found = read_problem(
        pa.table({"when": [f"2025-01-{1 + i % 28:02}" for i in range(80)], "y": [i % 2 for i in range(80)]}),
        target="y",
    )
    assert any("'when' is a date" in line for line in found.assumed)
    found.leave_out("when", "asked")
    assert not any("'when' is a date" in line for line in found.assumed)
