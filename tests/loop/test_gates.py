"""The gate: every rule on every kind of number; what is missing or not finite fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mainspring.errors import InvalidInput
from mainspring.loop.gates import judge, label_array
from mainspring.records.loop import GateRule
from mainspring.records.models import Column, Signature, Task

DAY = datetime(2024, 1, 1, tzinfo=UTC)


class Recorded:
    """A predictor whose score of a row stands in a column of that row."""

    def __init__(
        self, column: str, *, task: Task = Task.BINARY, classes: tuple[str, ...] = ("no", "yes")
    ) -> None:
        self.signature = Signature(
            inputs=[Column(name=column, type="float64")], task=task, classes=list(classes),
            class_type="bool", class_values=["False", "True"],
        )  # fmt: skip
        self._column = column

    def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(columns[self._column], dtype=np.float64)


def rows(count: int = 400, *, seed: int = 0, positives: float = 0.3) -> pa.Table:
    rng = np.random.default_rng(seed)
    y = rng.random(count) < positives
    good = np.clip(np.where(y, 0.6, 0.2) + rng.normal(0, 0.05, count), 0.01, 0.99)
    return pa.table(
        {
            "event_time": pa.array(
                [DAY + timedelta(hours=i) for i in range(count)], pa.timestamp("us", "UTC")
            ),
            "y": y,
            "good": good,
            "bad": np.clip(1 - good, 0.01, 0.99),
            "same": good,
            "broken": np.full(count, np.nan),
        }
    )


def one(
    rule: GateRule, candidate: str = "good", champion: str | None = None, table: pa.Table | None = None
) -> Any:
    return judge(
        [rule],
        candidate=Recorded(candidate),
        champion=Recorded(champion) if champion else None,
        rows=table if table is not None else rows(),
        label="y",
    )[0]


def test_absolute_limits() -> None:
    assert one(GateRule(metric="auc", min=0.6)).passed
    failed = one(GateRule(metric="auc", min=0.6), "bad")
    assert not failed.passed
    assert "must be >= 0.6" in failed.reason
    assert not one(GateRule(metric="log_loss", max=0.3), "bad").passed


def test_a_rule_without_a_limit_fails() -> None:
    assert not one(GateRule(metric="auc")).passed


def test_a_metric_that_cannot_be_computed_fails() -> None:
    """C03: AUC of one class is undefined. Seen red with `finite and` removed from _limits."""
    found = one(GateRule(metric="auc", min=0.0), table=rows(positives=0.0))
    assert not found.passed
    assert "not computable" in found.reason


def test_scores_that_are_not_finite_are_refused_with_their_count() -> None:
    with pytest.raises(InvalidInput, match="not finite"):
        one(GateRule(metric="log_loss", max=10.0), "broken")


def test_against_the_champion_on_the_same_rows() -> None:
    rule = GateRule(metric="log_loss", versus="champion", max_worse=0.02, test="paired")
    assert one(rule, "good", "bad").passed
    worse = one(rule, "bad", "good")
    assert not worse.passed
    assert worse.value > 0.1
    assert worse.low > 0.02


def test_the_same_model_is_not_inferior_within_a_margin_but_not_shown_better() -> None:
    assert one(
        GateRule(metric="log_loss", versus="champion", max_worse=0.02, test="paired"), "same", "good"
    ).passed
    assert not one(
        GateRule(metric="log_loss", versus="champion", max_worse=0.0, test="paired"), "same", "good"
    ).passed
    assert one(
        GateRule(metric="log_loss", versus="champion", max_worse=0.0, test="point"), "same", "good"
    ).passed


def test_too_few_days_show_nothing() -> None:
    rule = GateRule(metric="log_loss", versus="champion", max_worse=0.02, test="paired")
    found = one(rule, "good", "good", rows(20))
    assert not found.passed
    assert "insufficient: 1 blocks, 3 are needed" in found.reason


def test_without_a_champion_there_is_nothing_to_lose_against() -> None:
    assert one(GateRule(metric="log_loss", versus="champion", max_worse=0.0, test="paired")).passed


def test_a_champion_that_cannot_score_the_rows_stops_the_candidate() -> None:
    found = one(GateRule(metric="log_loss", versus="champion", max_worse=0.0), "good", "absent")
    assert not found.passed
    assert "cannot score" in found.reason


def test_latency_is_measured() -> None:
    found = one(GateRule(metric="latency_p99_ms", max=1000))
    assert found.passed
    assert found.rows == 200
    assert not one(GateRule(metric="latency_p99_ms", max=0.0)).passed


def test_a_missing_label_column_is_named() -> None:
    with pytest.raises(InvalidInput, match="no label column"):
        judge([], candidate=Recorded("good"), champion=None, rows=rows().drop_columns(["y"]), label="y")


def test_labels_of_each_task() -> None:
    table = pa.table(
        {"b": [True, False], "c": ["yes", "no"], "m": ["b", "a"], "r": [1.5, 2.0], "k": [2.0, 1.0]}
    )
    named = Signature(
        inputs=[], task=Task.BINARY, classes=["no", "yes"], class_type="bool", class_values=["False", "True"]
    )
    assert label_array(table, "b", named).tolist() == [1.0, 0.0]
    assert label_array(table, "c", named).tolist() == [1.0, 0.0]
    assert label_array(
        table, "m", Signature(inputs=[], task=Task.MULTICLASS, classes=["a", "b"])
    ).tolist() == [1.0, 0.0]
    assert label_array(table, "r", Signature(inputs=[], task=Task.REGRESSION)).tolist() == [1.5, 2.0]
    numbered = Signature(inputs=[], task=Task.BINARY, classes=["1", "2"])
    assert label_array(table, "k", numbered).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("values", [["yes", None], ["yes", "maybe"], [True, False]])
def test_a_holdout_label_that_is_no_class_is_refused_with_its_row(values: list[Any]) -> None:
    signature = Signature(inputs=[], task=Task.BINARY, classes=["no", "yes"])
    with pytest.raises(InvalidInput, match="classes: no, yes") as caught:
        label_array(pa.table({"y": values}), "y", signature)
    assert "column 'y'" in (caught.value.place or "")
