"""The definition of a metric: its tasks, unit, direction, the evidence that an interval needs, and one of three ways to compute it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mainspring.errors import InvalidInput
from mainspring.records.models import Task
from mainspring.records.scores import PROBABILITIES, THRESHOLD, ScoreMeaning, classes_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PROBABILITY_SLACK = 1e-6
"""Scores may be outside of [0, 1] by this much (rounding in float32); they are then clipped to 0 or 1."""

LeaveOut = Callable[[Floats, Floats, Floats, Ints, int], Floats]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. Exactly one of ``row_loss``, ``totals`` and ``whole`` says how it is computed.

    Binary scores are P(positive), shape ``(n,)``; multiclass scores are ``(n, k)`` and ``y`` holds class indices; regression
    scores are ``(n,)`` in the unit of the label.
    """

    name: str
    tasks: frozenset[Task]
    unit: str
    higher_is_better: bool
    row_loss: Callable[[Floats, Floats], Floats] | None = None
    """``(y, scores)`` to a value per row: the metric is their weighted mean, then ``finish``."""
    finish: Callable[[Floats], Floats] | None = None
    """Applied to the mean, e.g. the square root in RMSE."""
    totals: Callable[[Floats, Floats], Floats] | None = None
    """``(y, scores)`` to ``(n, k)`` contributions: the metric is ``of_totals`` of their weighted sums."""
    of_totals: Callable[[Floats], Floats] | None = None
    """``(..., k)`` sums to ``(...)`` values; NaN where undefined."""
    whole: Callable[[Floats, Floats, Floats], float | None] | None = None
    """``(y, scores, weights)`` to the metric: for metrics that are no function of sums."""
    leave_out: LeaveOut | None = None
    """``(y, scores, weights, block, blocks)`` to the metric without each block, NaN where undefined; given together with ``whole``."""
    regroup: bool = False
    """``leave_out`` costs one pass per block: many blocks are merged first."""
    probabilities: bool = False
    """Whether scores must be probabilities, in [0, 1]."""
    labels: bool = False
    """Whether only the predicted classes matter."""
    meaning: ScoreMeaning = PROBABILITIES
    """What the scores are that this metric is given (binary: also the threshold)."""
    interval: Literal["t", "share"] = "t"
    """``share``: a binomial interval for a share of rows, else Student's t."""
    low: float = -math.inf
    high: float = math.inf
    least: int = 10
    """Rows needed for an interval."""
    least_per_class: int = 0
    """Rows of each class that are needed for an interval."""

    def __call__(self, y: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float | None:
        """The metric on these rows; None where it is undefined or no finite number."""
        truth, predicted, weight = self.checked(y, scores, weights)
        return self.value(truth, predicted, weight)

    def checked(
        self, y: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """``(y, scores, weights)`` as arrays that this metric takes. Raises :class:`InvalidInput`."""
        truth, predicted = as_arrays(y, scores)
        if self.probabilities:
            if not self.meaning.probabilities:
                raise InvalidInput(
                    f"{self.name} is of probabilities, and this model gives decision values",
                    value=self.name,
                    next_step="Use accuracy, f1 or auc, or fit the model in CalibratedClassifierCV.",
                )
            predicted = _clip_to_unit(predicted)
        elif self.labels and predicted.ndim == 1 and self.meaning.threshold != THRESHOLD:
            predicted = classes_of(predicted, self.meaning.threshold).astype(np.float64)
        return truth, predicted, as_weights(weights, len(truth))

    def value(self, y: Floats, scores: Floats, weights: Floats) -> float | None:
        """The metric on checked arrays."""
        if len(y) == 0 or not weights.sum() > 0:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            if self.whole is not None:
                value = self.whole(y, scores, weights)
                return value if value is not None and math.isfinite(value) else None
            return finite(self.finished(weights @ self.contributions(y, scores)))

    @property
    def additive(self) -> bool:
        """Whether sums over parts of the rows add up to the metric of all."""
        return self.whole is None

    def contributions(self, y: Floats, scores: Floats) -> Floats:
        """The contributions of each row, shape ``(n, k)``; their weighted sums give the metric. Only for additive metrics."""
        if self.row_loss is not None:
            return np.column_stack([self.row_loss(y, scores), np.ones(len(y))])
        assert self.totals is not None  # noqa: S101 - one of three is always given (tests/metrics)
        return self.totals(y, scores)

    def finished(self, totals: Floats) -> Floats:
        """Values from sums of contributions, shape ``(..., k)`` to ``(...)``; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.of_totals is not None:
                return np.asarray(self.of_totals(totals), dtype=np.float64)
            mean = np.asarray(np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], np.nan))
            return np.asarray(self.finish(mean)) if self.finish else mean


def finite(value: Floats | float) -> float | None:
    """The value as a Python float; None if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


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


def as_weights(weights: ArrayLike | None, rows: int) -> Floats:
    """One weight per row, finite and not negative; ones by default. Raises :class:`InvalidInput`."""
    if weights is None:
        return np.ones(rows)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (rows,) or not np.isfinite(values).all() or (values < 0).any():
        raise InvalidInput(
            "weights are one finite number per row, none negative", value=f"{values.shape} for {rows} rows"
        )
    return values


def _clip_to_unit(scores: Floats) -> Floats:
    outside = (scores < -PROBABILITY_SLACK) | (scores > 1 + PROBABILITY_SLACK)
    if outside.any():
        raise InvalidInput(
            "scores are no probabilities",
            value=float(scores[outside].flat[0]),
            next_step="Give the probability of the class, between 0 and 1.",
        )
    return np.clip(scores, 0.0, 1.0)


def class_indices(y: Floats, classes: int) -> Ints:
    """Labels as class indices, 0 to ``classes - 1``. Raises :class:`InvalidInput` for any other label."""
    index = y.astype(np.int64)
    if ((index != y) | (index < 0) | (index >= classes)).any():
        raise InvalidInput(
            "labels are not class indices",
            value=f"{classes} classes",
            next_step=f"Encode labels as whole numbers 0 to {classes - 1}.",
        )
    return index


def check_binary_labels(y: Floats) -> None:
    """Refuse labels that are not 0 or 1. Raises :class:`InvalidInput`."""
    if ((y != 0) & (y != 1)).any():
        raise InvalidInput(
            "labels of a binary model are not 0 or 1",
            value=sorted(set(y.tolist()))[:5],
            next_step="Encode the positive class as 1, the other as 0.",
        )
