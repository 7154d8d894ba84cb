"""How good predictions are: plain NumPy, one definition each, for all three tasks.

Binary scores are P(positive), shape ``(n,)``; multiclass scores are ``(n, k)`` with rows adding up to 1 and ``y`` holding
class indices; regression scores are ``(n,)`` in the unit of the label. An undefined metric (AUC of a single class, anything
of no rows) is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mainspring.errors import InvalidInput, near
from mainspring.records.models import Task

Floats = NDArray[np.float64]

EPSILON = 1e-7
"""Probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm: one certain mistake costs at most 16.1."""


@dataclass(frozen=True)
class Metric:
    """A metric: its tasks, unit, direction, and either a loss per row (averaged, then finished) or a whole-set function."""

    name: str
    tasks: frozenset[Task]
    unit: str
    higher_is_better: bool
    row_loss: Callable[[Floats, Floats], Floats] | None = None
    finish: Callable[[float], float] | None = None
    """Applied to the mean row loss, e.g. the square root in RMSE."""
    whole: Callable[[Floats, Floats, Floats], float | None] | None = None
    """``(y, scores, weights)``; used where the metric is no mean over rows."""

    def __call__(self, y: ArrayLike, scores: ArrayLike, *, weights: Floats | None = None) -> float | None:
        """The metric on these rows, or None where it is undefined."""
        truth, predicted = as_arrays(y, scores)
        if len(truth) == 0:
            return None
        weight = np.ones(len(truth)) if weights is None else weights
        if self.whole is not None:
            return self.whole(truth, predicted, weight)
        assert self.row_loss is not None  # noqa: S101 - one of the two is always given (registry below)
        mean = float(np.average(self.row_loss(truth, predicted), weights=weight))
        return self.finish(mean) if self.finish else mean


def as_arrays(y: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """``(y, scores)`` as float64 of equal length, all finite. Raises :class:`InvalidInput`."""
    truth = np.asarray(y, dtype=np.float64)
    predicted = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or predicted.ndim not in {1, 2} or len(truth) != len(predicted):
        raise InvalidInput(
            "labels and scores do not fit together",
            value=f"labels {truth.shape}, scores {predicted.shape}",
            next_step="Give labels of shape (n,) and scores of shape (n,) or, for multiclass, (n, k).",
        )
    for what, values in (("labels", truth), ("scores", predicted)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise InvalidInput(
                f"{what} hold values that are not finite",
                value=f"{bad} of {values.size}",
                next_step="Drop unlabelled rows first.",
            )
    return truth, predicted


def metric(name: str, task: Task) -> Metric:
    """Look up a metric for a task. Raises :class:`InvalidInput` naming near ones."""
    found = METRICS.get(name)
    if found is None or task not in found.tasks:
        known = [m.name for m in METRICS.values() if task in m.tasks]
        raise InvalidInput(
            f"no metric of this name for {task.value} models",
            value=name,
            next_step=near(name, known, what="metric"),
        )
    return found


def measure(
    y: ArrayLike, scores: ArrayLike, *, task: Task, names: list[str] | None = None
) -> dict[str, float | None]:
    """Several metrics at once; by default all that the task knows.

    >>> measure([0, 1], [0.25, 0.75], task=Task.BINARY, names=["accuracy", "brier"])
    {'accuracy': 1.0, 'brier': 0.0625}
    """
    chosen = [metric(n, task) for n in names] if names else [m for m in METRICS.values() if task in m.tasks]
    return {m.name: m(y, scores) for m in chosen}


# --- losses per row --------------------------------------------------------------------------------------------------


def log_loss_rows(y: Floats, p: Floats) -> Floats:
    """Negative log-likelihood in nats, per row."""
    if p.ndim == 2:
        index = _class_index(y, p.shape[1])
        chosen: Floats = p[np.arange(len(y)), index]
        nats: Floats = -np.log(np.clip(chosen, EPSILON, 1.0))
        return nats
    _binary_labels(y)
    clipped = np.clip(p, EPSILON, 1 - EPSILON)
    losses: Floats = -(y * np.log(clipped) + (1 - y) * np.log1p(-clipped))
    return losses


def _brier_rows(y: Floats, p: Floats) -> Floats:
    if p.ndim == 2:
        hot = np.zeros_like(p)
        hot[np.arange(len(y)), _class_index(y, p.shape[1])] = 1.0
        return np.asarray(((p - hot) ** 2).sum(axis=1))
    _binary_labels(y)
    squares: Floats = (p - y) ** 2
    return squares


def _hit_rows(y: Floats, p: Floats) -> Floats:
    if p.ndim == 2:
        hits = p.argmax(axis=1) == _class_index(y, p.shape[1])
    else:
        _binary_labels(y)
        hits = (p >= 0.5) == (y >= 0.5)
    return np.asarray(hits, dtype=np.float64)


def _class_index(y: Floats, classes: int) -> NDArray[np.int64]:
    index = y.astype(np.int64)
    if ((index != y) | (index < 0) | (index >= classes)).any():
        raise InvalidInput(
            "labels are not class indices",
            value=f"{classes} classes",
            next_step=f"Encode labels as whole numbers 0 to {classes - 1}.",
        )
    return index


def _binary_labels(y: Floats) -> None:
    if ((y != 0) & (y != 1)).any():
        raise InvalidInput(
            "labels of a binary model are not 0 or 1",
            value=sorted(set(y.tolist()))[:5],
            next_step="Encode the positive class as 1, the other as 0.",
        )


# --- whole-set metrics -----------------------------------------------------------------------------------------------


def auc(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half. None with one class.

    >>> auc(np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.1, 0.9]), np.ones(3))
    0.75
    """
    return AucOrder(y, p)(weights)


class AucOrder:
    """Weighted AUC of fixed rows for many weightings: sorts once, so that a bootstrap is linear per replicate."""

    def __init__(self, y: Floats, p: Floats) -> None:
        _binary_labels(y)
        self._order = np.argsort(p, kind="stable")
        ordered = p[self._order]
        self._positive = y[self._order] == 1
        self._starts = (
            np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
            if len(p)
            else np.zeros(0, np.int64)
        )

    def __call__(self, weights: Floats) -> float | None:
        if not len(self._starts):
            return None
        w = weights[self._order]
        positive = np.add.reduceat(np.where(self._positive, w, 0.0), self._starts)
        negative = np.add.reduceat(np.where(self._positive, 0.0, w), self._starts)
        total_positive, total_negative = float(positive.sum()), float(negative.sum())
        if total_positive <= 0 or total_negative <= 0:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / (total_positive * total_negative))


def calibration_error(y: Floats, p: Floats, weights: Floats) -> float | None:
    """Expected calibration error over 10 equal-width bins: mean distance of observed rate and mean score (Naeini et al. 2015)."""
    _binary_labels(y)
    if weights.sum() <= 0:
        return None
    bins = np.minimum((p * 10).astype(np.int64), 9)
    gap = np.bincount(bins, weights=weights * (y - p), minlength=10)
    return float(np.abs(gap).sum() / weights.sum())


def _r2(y: Floats, p: Floats, weights: Floats) -> float | None:
    if weights.sum() <= 0:
        return None
    mean = np.average(y, weights=weights)
    spread = float((weights * (y - mean) ** 2).sum())
    return None if spread <= 0 else float(1 - (weights * (y - p) ** 2).sum() / spread)


def _registry(*metrics: Metric) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


def _tasks(*tasks: Task) -> frozenset[Task]:
    return frozenset(tasks)


_CLASSES = (Task.BINARY, Task.MULTICLASS)
METRICS: dict[str, Metric] = _registry(
    Metric("log_loss", _tasks(*_CLASSES), "nats", higher_is_better=False, row_loss=log_loss_rows),
    Metric("brier", _tasks(*_CLASSES), "squared probability", higher_is_better=False, row_loss=_brier_rows),
    Metric("accuracy", _tasks(*_CLASSES), "share", higher_is_better=True, row_loss=_hit_rows),
    Metric("auc", _tasks(Task.BINARY), "probability", higher_is_better=True, whole=auc),
    Metric(
        "calibration_error",
        _tasks(Task.BINARY),
        "probability",
        higher_is_better=False,
        whole=calibration_error,
    ),
    Metric(
        "mae",
        _tasks(Task.REGRESSION),
        "unit of the label",
        higher_is_better=False,
        row_loss=lambda y, p: np.abs(y - p),
    ),
    Metric(
        "rmse",
        _tasks(Task.REGRESSION),
        "unit of the label",
        higher_is_better=False,
        row_loss=lambda y, p: (y - p) ** 2,
        finish=math.sqrt,
    ),
    Metric(
        "bias",
        _tasks(Task.REGRESSION),
        "unit of the label",
        higher_is_better=False,
        row_loss=lambda y, p: p - y,
        finish=abs,
    ),
    Metric("r2", _tasks(Task.REGRESSION), "share of variance", higher_is_better=True, whole=_r2),
)
