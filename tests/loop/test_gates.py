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
from mainspring.records.models import ClassType, Column, Signature, Task

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

    def compute_scores(self, columns: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(columns[self._column], dtype=np.float64)


class Fixed:
    """A predictor of these classes that answers these scores."""

    def __init__(
        self,
        classes: list[str],
        kind: ClassType,
        scores: np.ndarray,
        *,
        task: Task = Task.MULTICLASS,
        own: list[str] | None = None,
    ) -> None:
        self.signature = Signature(
            inputs=[], task=task, classes=classes, class_type=kind, class_values=own or []
        )
        self._scores = scores

    def compute_scores(self, columns: Mapping[str, Any]) -> np.ndarray:
        return self._scores


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


def test_a_champion_with_its_classes_in_another_order_is_judged_by_their_values() -> None:
    """Champion trained on 1, 2, 10, candidate on "1", "10", "2". Seen red: the same model was 0.69 worse than itself."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    right = np.eye(3)[truth] * 0.8 + 0.1
    labels = np.array([1, 2, 10])[truth]
    first = Fixed(["1", "2", "10"], "int64", right)
    second = Fixed(["1", "10", "2"], "string", right[:, [0, 2, 1]])
    table = pa.table({"y": labels})
    rule = GateRule(metric="accuracy", versus="champion", max_worse=0.01)
    for candidate, champion in ((first, second), (second, first)):
        [found] = judge([rule], candidate=candidate, champion=champion, rows=table, label="y")
        assert found.value == 0
        assert found.passed


def test_a_champion_of_other_classes_is_no_measure() -> None:
    """Seen red: the scores of class b were taken for those of class c, and the gate passed on them."""
    right = np.eye(3)[[0, 1, 2] * 40] * 0.8 + 0.1
    table = pa.table({"y": ["a", "c", "d"] * 40})
    rule = GateRule(metric="accuracy", versus="champion", max_worse=0.01)
    for other in (["a", "b", "c"], ["a", "b", "c", "d"], ["a", "c"]):
        champion = Fixed(other, "string", right[:, : len(other)])
        [found] = judge(
            [rule],
            candidate=Fixed(["a", "c", "d"], "string", right),
            champion=champion,
            rows=table,
            label="y",
        )
        assert not found.passed
        assert found.value is None
        assert f"its classes are {', '.join(other)}, not a, c, d" in found.reason


def test_binary_classes_in_the_other_order_and_renamed_ones() -> None:
    """Seen red: the champion's P(yes) was taken for P(no)."""
    y = np.array([0, 1] * 50)
    table = pa.table({"y": np.array(["no", "yes"])[y]})
    right = Fixed(["no", "yes"], "string", np.where(y, 0.8, 0.1), task=Task.BINARY)
    turned = Fixed(["yes", "no"], "string", np.where(y, 0.2, 0.9), task=Task.BINARY)
    codes = Fixed(["no", "yes"], "int64", np.where(y, 0.8, 0.1), task=Task.BINARY, own=["0", "1"])
    rule = GateRule(metric="log_loss", versus="champion", max_worse=0.01)
    for champion in (right, turned, codes):
        [found] = judge([rule], candidate=right, champion=champion, rows=table, label="y")
        assert found.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "kind", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("us", "Asia/Tokyo"), pa.string()]
)
@pytest.mark.parametrize("shift", ["", "Z"])
def test_rows_of_one_day_are_one_block_however_the_day_is_written(kind: pa.DataType, shift: str) -> None:
    """Seen red: with dates or texts every row counted for itself, and nine days showed what nine days cannot show."""
    days = pa.array(np.repeat(np.arange(9), 30), pa.int32()).cast(pa.date32())
    times = days.cast(pa.timestamp("s")).cast(kind) if not pa.types.is_string(kind) else None
    if times is None:
        times = pa.array([f"{d}T12:00:00{shift}" for d in days.to_pylist()])
    table = rows(270).set_column(0, "event_time", times)
    rule = GateRule(metric="log_loss", versus="champion", max_worse=0.01)
    reference = rows(270).set_column(0, "event_time", days.cast(pa.timestamp("us")))
    assert one(rule, "same", "bad", table).low == one(rule, "same", "bad", reference).low


def test_a_time_column_that_tells_no_days_is_refused() -> None:
    """Seen red: numbers, other texts, and a column that was not there were passed over, rows counting for themselves."""
    rule = GateRule(metric="log_loss", versus="champion", max_worse=0.01)
    for values in (pa.array(range(400)), pa.array(["soon"] * 400)):
        with pytest.raises(InvalidInput, match="cannot be read as times"):
            one(rule, "good", "bad", rows().set_column(0, "event_time", values))
    with pytest.raises(InvalidInput, match="lacks the time column") as raised:
        judge(
            [rule], candidate=Recorded("good"), champion=None, rows=rows(), label="y", time_column="even_time"
        )
    assert "event_time" in (raised.value.next_step or "")


def test_nulls_of_a_dictionary_column_stay_nulls() -> None:
    """Seen red: Arrow's to_numpy turns a null of a dictionary into the last of its values."""
    given: list[Any] = []

    class Keeps(Recorded):
        def compute_scores(self, columns: Mapping[str, Any]) -> np.ndarray:
            given.append(list(columns["c"]))
            return np.full(len(columns["c"]), 0.9)

    values = pa.array(["a", None, "b"] * 10).dictionary_encode()
    table = pa.table({"c": values, "y": [True, False, True] * 10})
    judge([GateRule(metric="accuracy", min=0)], candidate=Keeps("c"), champion=None, rows=table, label="y")
    assert given[0] == ["a", None, "b"] * 10
