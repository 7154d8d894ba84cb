"""Every metric against scikit-learn's (or a count by hand), with weights, ties, one class, no rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from mainspring.errors import InvalidInput
from mainspring.metrics.classes import EPSILON
from mainspring.metrics.registry import METRICS, measure, metric
from mainspring.monitoring.performance import losses, metrics_of
from mainspring.records.models import Task

RNG = np.random.default_rng(5)
Y = (RNG.random(500) < 0.3).astype(float)
P = np.clip(np.round(RNG.random(500) * 0.6 + 0.3 * Y, 2), 0.0, 1.0)  # rounded: many ties, some exactly 0.5
K = RNG.integers(0, 4, 300).astype(float)
PK = np.round(RNG.dirichlet(np.ones(4), 300), 1) + 1e-3  # rounded: ties of the most probable class
PK /= PK.sum(axis=1, keepdims=True)
R = RNG.normal(10, 3, 200)
PR = np.round(R + RNG.normal(0.5, 1, 200), 1)
SAID, SAID_K = (P > 0.5).astype(float), PK.argmax(axis=1)


def _ece(y, p, w):
    bins = np.minimum((p * 10).astype(int), 9)
    parts = [
        w[bins == b].sum() * abs(np.average(y[bins == b], weights=w[bins == b]) - np.average(p[bins == b], weights=w[bins == b]))
        for b in np.unique(bins)
    ]  # fmt: skip
    return sum(parts) / w.sum()


def _ovr(average):
    return lambda y, p, w: float(
        np.average(
            [reference.roc_auc_score(y == k, p[:, k], sample_weight=w) for k in range(4)],
            weights=None if average == "macro" else [w[y == k].sum() for k in range(4)],
        )
    )


def _macro(function):
    return lambda y, p, w: function(y, p.argmax(axis=1), average="macro", sample_weight=w, zero_division=0)


def _said(function, **more):
    return lambda y, p, w: function(y, p > 0.5, sample_weight=w, **more)


def _direct(function, **more):
    return lambda y, p, w: function(y, p, sample_weight=w, **more)


CASES = {
    (Task.BINARY, "log_loss"): _direct(reference.log_loss),
    (Task.BINARY, "brier"): _direct(reference.brier_score_loss),
    (Task.BINARY, "calibration_error"): _ece,
    (Task.BINARY, "accuracy"): _said(reference.accuracy_score),
    (Task.BINARY, "precision"): _said(reference.precision_score),
    (Task.BINARY, "recall"): _said(reference.recall_score),
    (Task.BINARY, "f1"): _said(reference.f1_score),
    (Task.BINARY, "balanced_accuracy"): _said(reference.balanced_accuracy_score),
    (Task.BINARY, "mcc"): _said(reference.matthews_corrcoef),
    (Task.BINARY, "auc"): _direct(reference.roc_auc_score),
    (Task.BINARY, "pr_auc"): _direct(reference.average_precision_score),
    (Task.MULTICLASS, "log_loss"): _direct(reference.log_loss),
    (Task.MULTICLASS, "brier"): lambda y, p, w: float(np.average(((p - np.eye(4)[y.astype(int)]) ** 2).sum(axis=1), weights=w)),
    (Task.MULTICLASS, "calibration_error"): lambda y, p, w: _ece((p.argmax(axis=1) == y).astype(float), p.max(axis=1), w),
    (Task.MULTICLASS, "accuracy"): lambda y, p, w: reference.accuracy_score(y, p.argmax(axis=1), sample_weight=w),
    (Task.MULTICLASS, "precision"): _macro(reference.precision_score),
    (Task.MULTICLASS, "recall"): _macro(reference.recall_score),
    (Task.MULTICLASS, "f1"): _macro(reference.f1_score),
    (Task.MULTICLASS, "balanced_accuracy"): lambda y, p, w: reference.balanced_accuracy_score(y, p.argmax(axis=1), sample_weight=w),
    (Task.MULTICLASS, "mcc"): lambda y, p, w: reference.matthews_corrcoef(y, p.argmax(axis=1), sample_weight=w),
    (Task.MULTICLASS, "auc"): _ovr("macro"),
    (Task.MULTICLASS, "auc_weighted"): _ovr("weighted"),
    (Task.REGRESSION, "mae"): _direct(reference.mean_absolute_error),
    (Task.REGRESSION, "mse"): _direct(reference.mean_squared_error),
    (Task.REGRESSION, "rmse"): _direct(reference.root_mean_squared_error),
    (Task.REGRESSION, "bias"): lambda y, p, w: abs(float(np.average(p - y, weights=w))),
    (Task.REGRESSION, "median_absolute_error"): _direct(reference.median_absolute_error),
    (Task.REGRESSION, "mape"): _direct(reference.mean_absolute_percentage_error),
    (Task.REGRESSION, "smape"): lambda y, p, w: float(np.average(2 * abs(y - p) / (abs(y) + abs(p)), weights=w)),
    (Task.REGRESSION, "pinball"): _direct(reference.mean_pinball_loss, alpha=0.5),
    (Task.REGRESSION, "pinball_0.9"): _direct(reference.mean_pinball_loss, alpha=0.9),
    (Task.REGRESSION, "r2"): _direct(reference.r2_score),
}  # fmt: skip
DATA = {Task.BINARY: (Y, P), Task.MULTICLASS: (K, PK), Task.REGRESSION: (R, PR)}


@pytest.mark.parametrize("weighted", ["ones", "whole", "real"])
@pytest.mark.parametrize(("task", "name"), list(CASES))
def test_equals_scikit_learn(task: Task, name: str, weighted: str) -> None:
    y, p = DATA[task]
    rng = np.random.default_rng(1)
    weights = {
        "ones": np.ones(len(y)),
        "whole": rng.integers(0, 4, len(y)).astype(float),
        "real": rng.gamma(1.0, size=len(y)),
    }[weighted]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = CASES[task, name](y, p, weights)
    assert metric(name, task)(y, p, weights=weights) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_metric_has_a_reference() -> None:
    assert {(t, n) for t in Task for n in METRICS[t]} == set(CASES) - {(Task.REGRESSION, "pinball_0.9")}


@pytest.mark.parametrize(("task", "name"), list(CASES))
def test_repeating_rows_equals_weighting_them(task: Task, name: str) -> None:
    y, p = DATA[task]
    weights = np.random.default_rng(2).integers(0, 4, len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    chosen = metric(name, task)
    assert chosen(y, p, weights=weights) == pytest.approx(chosen(y[repeated], p[repeated]), rel=1e-9)


def test_every_metric_says_how_it_is_computed_and_what_it_needs() -> None:
    for task in Task:
        for m in METRICS[task].values():
            assert sum(x is not None for x in (m.row_loss, m.totals, m.whole)) == 1, m.name
            assert (m.totals is None) == (m.of_totals is None), m.name
            assert (m.whole is None) == (m.leave_out is None), m.name
            assert m.unit, m.name
            assert m.least >= 10, m.name


@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS, Task.REGRESSION])
def test_no_rows_and_no_weight_are_none(task: Task) -> None:
    empty = np.zeros((0, 3)) if task is Task.MULTICLASS else []
    assert set(measure([], empty, task=task).values()) == {None}
    y, p = DATA[task]
    assert set(measure(y, p, task=task, weights=np.zeros(len(y))).values()) == {None}


def test_a_single_class_leaves_undefined_what_needs_two() -> None:
    found = measure([1, 1], [0.2, 0.9], task=Task.BINARY)
    assert {n for n, v in found.items() if v is None} == {"auc", "balanced_accuracy", "mcc"}
    found = measure([0, 0], [0.2, 0.1], task=Task.BINARY)
    assert {n for n, v in found.items() if v is None} == {
        "auc", "balanced_accuracy", "f1", "mcc", "pr_auc", "precision", "recall",
    }  # fmt: skip
    found = measure([1, 1], [[0.2, 0.8, 0.0]] * 2, task=Task.MULTICLASS)
    assert {n for n, v in found.items() if v is None} == {"auc", "auc_weighted", "mcc"}
    assert metric("r2", Task.REGRESSION)([2, 2], [1, 3]) is None
    assert metric("mape", Task.REGRESSION)([0, 2], [1, 3]) is None  # no share of a true 0


def test_nothing_is_nan_or_infinite() -> None:
    found = measure([1e300, -1e300], [-1e300, 1e300], task=Task.REGRESSION)
    assert found["mse"] is None
    assert all(v is None or np.isfinite(v) for v in found.values())


def test_one_clip_everywhere() -> None:
    """Seen red against 0.1: 16.1 in evaluation, 34.5 in windows for the same row."""
    worst = -np.log(EPSILON)
    assert metric("log_loss", Task.BINARY)([1], [0.0]) == pytest.approx(worst, rel=1e-12)
    assert losses(np.array([0.0]), np.array([1.0]), Task.BINARY)["log_loss"][0] == pytest.approx(
        worst, rel=1e-12
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert worst == pytest.approx(reference.log_loss([1.0], [0.0], labels=[0, 1]), rel=1e-9)


@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS, Task.REGRESSION])
def test_windows_and_evaluation_give_the_same_figures(task: Task) -> None:
    """Seen red against 0.1 for log-loss (another clip)."""
    y, p = DATA[task]
    p = np.where(p < 0.02, 0.0, p) if task is Task.BINARY else p
    window, _ = metrics_of(p, y, task)
    for name, value in measure(y, p, task=task).items():
        assert window[name].value == value, name


def test_a_tie_is_the_first_class_as_scikit_learn_predicts() -> None:
    """Seen red against 0.1, where a score of 0.5 was positive."""
    assert metric("accuracy", Task.BINARY)([0, 1], [0.5, 0.5]) == 0.5
    assert metric("recall", Task.BINARY)([1], [0.5]) == 0.0
    assert metric("accuracy", Task.MULTICLASS)([0, 1], [[0.5, 0.5], [0.5, 0.5]]) == 0.5


def test_r2_of_labels_far_from_zero() -> None:
    y = 1.7e9 + R
    assert metric("r2", Task.REGRESSION)(y, y + 0.1) == pytest.approx(1 - 0.01 / R.var(), abs=1e-6)


@pytest.mark.parametrize(
    ("y", "p", "task"),
    [
        ([0, 2], [0.1, 0.2], Task.BINARY),
        ([0, 1], [0.1], Task.BINARY),
        ([0, float("nan")], [0.1, 0.2], Task.BINARY),
        ([0, 1], [0.1, float("inf")], Task.BINARY),
        ([0, 1], [0.1, 1.5], Task.BINARY),
        ([0, 1], [-2.0, 0.5], Task.BINARY),
        ([0, 9], [[0.5, 0.5], [0.5, 0.5]], Task.MULTICLASS),
        ([0, 0.5], [[0.5, 0.5], [0.5, 0.5]], Task.MULTICLASS),
    ],
)
def test_impossible_input_is_refused(y, p, task) -> None:
    with pytest.raises(InvalidInput):
        metric("log_loss", task)(y, p)


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InvalidInput, match="weights"):
        metric("auc", Task.BINARY)([0, 1], [0.1, 0.2], weights=weights)


def test_a_misspelt_metric_names_the_near_one() -> None:
    with pytest.raises(InvalidInput, match="log_loss"):
        metric("logloss", Task.BINARY)
    for name in ("auc", "pinball_1.5", "pinball_0.0", "pinball_x"):
        with pytest.raises(InvalidInput):
            metric(name, Task.REGRESSION)
