"""Metrics against scikit-learn's, and what they say where they are undefined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.training.metrics import METRICS, AucOrder, measure, metric

RNG = np.random.default_rng(5)
Y = (RNG.random(500) < 0.3).astype(float)
P = np.clip(np.round(RNG.random(500) * 0.6 + 0.3 * Y, 2), 0.01, 0.99)  # rounded: many ties
K = RNG.integers(0, 4, 300).astype(float)
PK = RNG.dirichlet(np.ones(4), 300)
R = RNG.normal(10, 3, 200)
PR = R + RNG.normal(0.5, 1, 200)


@pytest.mark.parametrize(
    ("name", "task", "y", "p", "expected"),
    [
        ("log_loss", Task.BINARY, Y, P, reference.log_loss(Y, P)),
        ("brier", Task.BINARY, Y, P, reference.brier_score_loss(Y, P)),
        ("auc", Task.BINARY, Y, P, reference.roc_auc_score(Y, P)),
        ("accuracy", Task.BINARY, Y, P, reference.accuracy_score(Y, P >= 0.5)),
        ("log_loss", Task.MULTICLASS, K, PK, reference.log_loss(K, PK)),
        ("accuracy", Task.MULTICLASS, K, PK, reference.accuracy_score(K, PK.argmax(axis=1))),
        ("mae", Task.REGRESSION, R, PR, reference.mean_absolute_error(R, PR)),
        ("rmse", Task.REGRESSION, R, PR, reference.root_mean_squared_error(R, PR)),
        ("r2", Task.REGRESSION, R, PR, reference.r2_score(R, PR)),
    ],
)
def test_equals_scikit_learn(name, task, y, p, expected) -> None:
    assert metric(name, task)(y, p) == pytest.approx(expected, rel=1e-9)


def test_weighted_auc_equals_repeating_rows() -> None:
    weights = RNG.integers(0, 4, len(Y)).astype(float)
    repeated = np.repeat(np.arange(len(Y)), weights.astype(int))
    assert AucOrder(Y, P)(weights) == pytest.approx(reference.roc_auc_score(Y[repeated], P[repeated]))


def test_calibration_error_of_a_constant_score() -> None:
    assert metric("calibration_error", Task.BINARY)([1, 0, 0, 0], [0.35] * 4) == pytest.approx(0.1)


def test_undefined_is_none_never_nan() -> None:
    assert metric("auc", Task.BINARY)([1, 1], [0.2, 0.3]) is None
    assert metric("r2", Task.REGRESSION)([2, 2], [1, 3]) is None
    assert all(value is None for value in measure([], [], task=Task.BINARY).values())


def test_a_certain_mistake_costs_a_finite_amount() -> None:
    assert metric("log_loss", Task.BINARY)([1], [0.0]) == pytest.approx(16.118, abs=1e-3)


@pytest.mark.parametrize(
    ("y", "p", "task"),
    [
        ([0, 2], [0.1, 0.2], Task.BINARY),
        ([0, 1], [0.1], Task.BINARY),
        ([0, float("nan")], [0.1, 0.2], Task.BINARY),
        ([0, 1], [0.1, float("inf")], Task.BINARY),
        ([0, 9], [[0.5, 0.5], [0.5, 0.5]], Task.MULTICLASS),
        ([0, 0.5], [[0.5, 0.5], [0.5, 0.5]], Task.MULTICLASS),
    ],
)
def test_impossible_input_is_refused(y, p, task) -> None:
    with pytest.raises(InvalidInput):
        metric("log_loss", task)(y, p)


def test_a_misspelt_metric_names_the_near_one() -> None:
    with pytest.raises(InvalidInput, match="log_loss"):
        metric("logloss", Task.BINARY)
    with pytest.raises(InvalidInput):
        metric("auc", Task.REGRESSION)


def test_every_metric_knows_how_to_compute_itself() -> None:
    assert all((m.row_loss is None) != (m.whole is None) for m in METRICS.values())
